import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from configs.annotations import fits, in_words
from configs.errors import ConfigError
from configs.signatures import REQUIRED, UNKNOWN, signature

ROOT = Path(__file__).parents[2]
CLASSES = [
    *("optim.Adafactor", "optim.AdamW", "optim.GaussNewtonBartlett", "optim.Hutchinson", "optim.Lion", "optim.SGD"),
    *("optim.SOAP", "optim.Shampoo", "optim.Signum", "optim.Sophia", "optim.Adalayer", "optim.FAdam", "optim.RMSprop"),
    "optim.SM3",
    *("optim.CAME", "optim.HFac", "optim.SMMF", "optim.SOAP", "optim.Shampoo", "optim.Signum", "optim.Sophia"),
    *("optim.SOAP", "optim.Shampoo", "optim.Signum", "optim.Sophia"),
    *("optim.Adapprox", "optim.CAME", "optim.HFac", "optim.SMMF"),
    *("torch.optim.AdamW", "torch.optim.RAdam", "torch.optim.SGD", "torch.optim.NAdam", "torch.optim.Adafactor"),
    *("trainer.Constant", "trainer.Cosine", "trainer.Linear", "trainer.WSD", "trainer.Single", "trainer.Wandb"),
    *("data.Files", "data.OpenWebText", "data.PySource", "data.Synthetic", "data.BPE", "data.Bytes", "data.GPT2"),
    *(
        "data.HuggingFace",
        "data.TokenFiles",
        "data.Mixture",
        "data.OfParts",
        "data.TokenizerFile",
        "data.Ids",
        "data.Characters",
    ),
    *("model.GPT", "model.Llama", "configs.schema.RunConfig"),
]


@pytest.mark.parametrize("target", CLASSES)
def test_the_source_says_what_python_says(target: str) -> None:
    found = signature(target, may_import=False)
    module, _, name = target.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert found is not None and not found.takes_any
    assert list(found.arguments) == list(parameters)
    for name, argument in found.arguments.items():
        expected = parameters[name].default
        if argument.default is REQUIRED:
            assert expected is inspect.Parameter.empty
        elif argument.default is not UNKNOWN:
            assert argument.default == expected and type(argument.default) is type(expected)


def test_what_a_base_takes_is_taken_too() -> None:
    for name, own in (("DDP", "compression"), ("FSDP2", "mesh")):
        found = signature(f"trainer.{name}", may_import=False)
        assert found is not None and not found.takes_any
        assert {own, "device", "precision", "compiled", "timeout_seconds"} == set(found.arguments)


def test_nothing_is_imported() -> None:
    code = "import sys; from configs.signatures import signature\n"
    code += f"for target in {CLASSES!r}: assert signature(target, may_import=True)\n"
    code += "print(*sorted({'torch', 'optim', 'trainer', 'data'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "\n"


def test_a_class_whose_source_says_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "def made(rate: float = 0.5): pass\nMade = type('Made', (), {'__init__': lambda self, rate=0.5: None})\n"
    (tmp_path / "made_at_run_time.py").write_text(source)
    assert signature("made_at_run_time.Made", may_import=False) is None
    found = signature("made_at_run_time.Made", may_import=True)
    assert found is not None and found.arguments["rate"].default == 0.5
    with pytest.raises(ConfigError, match="is a function; name a class"):
        signature("made_at_run_time.made", may_import=True)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("optim.Sofia", "optim has no Sofia; it has Adafactor, Adalayer, AdamW"),
        ("no_such_package.Class", "cannot be imported: ModuleNotFoundError"),
        ("os.system", "name a class"),
    ],
)
def test_what_is_no_class_is_named(target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        signature(target, may_import=True)


@pytest.mark.parametrize(
    ("annotation", "right", "wrong", "words"),
    [
        ("int", [1, 0, 1e3], [1.5, True, "1", None, [1]], "a whole number"),
        ("float", [1, 0.5], [True, "0.5", None, [0.5]], "a number"),
        ("float | Tensor", [0.5, {"_target_": "x"}], ["x", True, [0.5], None], "a number"),
        ("int | None", [1, None], ["1", False], "a whole number or null"),
        ("Optional[int]", [1, None], ["1"], "a whole number or null"),
        ("bool", [True, False], [0, 1, "true", None], "true or false"),
        ("'str | None'", ["", None], [1, True], "a text or null"),
        ("tuple[float, float]", [[0.9, 0.95], (1, 2)], [[0.9], [0.9, "x"], 0.9, "ab"], "a list of 2 numbers"),
        ("Sequence[int] | None", [[], [1, 2], None], [["x"], 1, "ab"], "a list of whole numbers or null"),
        ("Literal['a', 'b']", ["a"], ["c", 1], "a or b"),
        ("Mapping[str, Any]", [{}], [[], 1], "a mapping"),
        ("Curvature", [1, "x", None, {}], [], "something else"),
    ],
)
def test_values_fit_annotations(annotation: str, right: list[object], wrong: list[object], words: str) -> None:
    expression = ast.parse(annotation, mode="eval").body
    assert [fits(value, expression) for value in right] == [True] * len(right)
    assert [fits(value, expression) for value in wrong] == [False] * len(wrong)
    assert in_words(expression) == words
