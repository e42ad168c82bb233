"""results.json to a page, Markdown, CSV and pictures; it computes nothing.

results.py      what a report is made of: the schema of results.json
numbers.py      how every number is spelled, in results, reports and sentences alike
content.py      what a report says and in which order, as sections
grids.py        its tables
sources.py      where a source that is named in words stands on the web
intervals.py    a number's interval as a small picture
pages.py        all that as HTML and as GitHub's Markdown, by the templates in templates/
figures.py      what a figure must be, and what its two drawings have in common
interactive.py  a figure drawn for the page (plotly)
live.py         a page that follows runs while they go on
paper.py        a figure drawn for paper (PNG and PDF)
files.py        all files of a report
ledger.py       the table of all claims
"""
