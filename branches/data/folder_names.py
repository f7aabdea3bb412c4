"""What names of folders and files say of recordings: normal or anomalous, for training or for testing, which domain."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path

_NORMAL = r"normal(?!i[sz])\w*|ok|okay|good|healthy|intact|nominal|正常\w*|良品?"
_ANOMALY = (
    r"(?:anomal|abnormal|anormal|novel|outlier|defect|defekt|defaut|fault|fehler|fail|broken|damag|schad|leak|crack|malfunc|"
    r"misalign|imbalanc|unbalanc|contamin|reject|scrap|異常|异常|不良|故障)\w*?|ng|ko|nok|nio|bad|worn|wear"
)
# With what may turn a word around: unhealthy, nondefective, not ok; faultless, leakfree.
_CONDITION = re.compile(rf"(un|no[nt]?)?(?:({_NORMAL})|{_ANOMALY})(less|free|frei)?")
_NOT = {"no", "not", "non", "un", "without", "kein", "keine", "nicht", "ohne"}
_SHORT = {"io": "normal", "pass": "normal", "passed": "normal"}  # these mean something else beside other words
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_DOMAINS = {"source": "source", "target": "target"}
_PLAIN = re.compile(r"\d+|data|dataset|set|audio|(?:sound|clip|file|recording|sample)s?|wav")  # say nothing
_SEAMS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})|(?<=[A-Za-z])(?=[\u3040-\u9fff])")


@cache
def labels_of(name: str) -> dict[str, str]:
    """`condition`, `split` and `domain`, as far as the words in a name say it; words end at digits, signs, capitals.

    One word is enough for a condition. Split and domain are taken from names that say nothing else, so that ToyTrain
    and `test bench` stay machines. What a name says both ways it does not say.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    words: list[str] = re.findall(r"[^\W\d_]+|\d+", _SEAMS.sub(" ", plain).casefold())
    letters = "".join(words)
    found = {"condition": _conditions(words) or _conditions([letters]) or {_SHORT.get(letters, "")} - {""}}
    if all(w in _SPLITS or w in _DOMAINS or _PLAIN.fullmatch(w) or _CONDITION.fullmatch(w) for w in words):
        for key, meanings in (("split", _SPLITS), ("domain", _DOMAINS)):
            found[key] = {meanings[word] for word in words if word in meanings}
    return {key: values.pop() for key, values in found.items() if len(values) == 1}


def is_called_anomaly(path: Path) -> bool:
    """Whether its folder's name, or failing that its own, says that a recording is an anomaly."""
    return (labels_of(path.parent.name).get("condition") or labels_of(path.stem).get("condition")) == "anomaly"


def _conditions(words: list[str]) -> set[str]:
    found = set()
    for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
        if match := _CONDITION.fullmatch(word):
            turned = (match[1] is not None) + (match[3] is not None) + (before in _NOT) + (after in ("free", "frei"))
            found.add("normal" if (match[2] is not None) != turned % 2 else "anomaly")
    return found
