"""results.json to a page, Markdown, CSV and pictures; it computes nothing.

results.py    what a report is made of: the schema of results.json
numbers.py    how every number is spelled, in results, reports and sentences alike
content.py    what a report says and in which order, as sections and tables
pages.py      that as HTML and as GitHub's Markdown, by the templates in templates/
figures.py    a figure drawn for the page (plotly) and for paper (PNG and PDF)
files.py      all files of a report
ledger.py     the table of all claims
"""
