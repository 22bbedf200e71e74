"""What comes before the part that a grammar is for: reasoning is free, and what follows it is not."""

import pytest

pytest.importorskip("xgrammar", reason="xgrammar is not installed")

from tests.tokenizer.core_harness import make_vocabulary
from tests.tokenizer.test_prompts import chat
from tokenizers import AddedToken

from octavo.services.tokenizer.grammar_compile import Unfit, compile_untried
from octavo.services.tokenizer.parsers import Parsers
from octavo.services.tokenizer.parsing.events import Content, Reasoning, ToolArguments, ToolBegin
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.services.tokenizer.wanted_grammar import wanted_grammar
from octavo.shared.grammar import GrammarVocabulary, load_xgrammar, tokenizer_info
from octavo.shared.openai import Options

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("find", "go")]
SCHEMA = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a", "b"]}
LAX = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": False}}
MUST_CALL = chat(tools=TOOLS, tool_choice="required")
MUST_FIND = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "find"}})
HARMONY = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")
ASSISTANT = "<|start|>assistant"
ANALYSIS = "<|channel|>analysis<|message|>b{é\n<|end|><|start|>assistant"
FINAL, CALL = "<|channel|>final<|message|>", "<|channel|>commentary to=functions.find <|constrain|>json<|message|>"


def form(**fields: object) -> Options:
    return chat(structured_outputs=fields)


FORM = form(regex="[ab]{2}")


class Model:
    """A vocabulary and its parsers; says what completions the grammar of a request takes."""

    def __init__(self, template: str, *special: str) -> None:
        tokenizer = make_vocabulary()._tokenizer
        tokenizer.add_special_tokens([AddedToken(each, special=True) for each in ("<|eos|>", *special)])
        self.vocabulary = Vocabulary(tokenizer, eos_token="<|eos|>", chat_template=template)
        self.parsers = Parsers(self.vocabulary)
        of = self.vocabulary
        self._info = tokenizer_info(GrammarVocabulary.of(of.pieces, of.special_ids, of.eos_ids, of.size))

    def takes(self, options: Options, prompt: str, completion: str) -> bool:
        """The grammar allows each token of a completion, and an end behind it."""
        found = wanted_grammar(options, self.parsers.lead(prompt))
        assert found is not None
        compiler = load_xgrammar().GrammarCompiler(self._info, max_threads=1)
        matcher = load_xgrammar().GrammarMatcher(compile_untried(found[0], compiler))
        ids = self.vocabulary.encode(completion, add_special_tokens=False)
        return all(matcher.accept_token(token) for token in (*ids, *self.vocabulary.eos_ids))


QWEN = Model("<think>")
QWEN_SPECIAL = Model("<think>", "<think>", "</think>")
MISTRAL = Model("[TOOL_CALLS] [THINK]", "[TOOL_CALLS]", "[THINK]", "[/THINK]")
GPT_OSS = Model("<|channel|>", *HARMONY)


@pytest.mark.parametrize(
    ("model", "prompt", "completion", "is_taken"),
    [
        (QWEN, "<assistant>", "<think>\nc{é\n</think>\n\nab", True),
        (QWEN, "<assistant>", "<think>\nc\n</think>\n\nabc", False),
        (QWEN, "<assistant><think>", "c</think>ab", True),
        (QWEN_SPECIAL, "<assistant>", "<think>c{é</think>\n\nab", True),
        (QWEN_SPECIAL, "<assistant><think>\n", "c</think>ab", True),
        (QWEN_SPECIAL, "<assistant><think>\n", "ab", False),
        (MISTRAL, "[/INST]", "[THINK]c{é[/THINK]ab", True),
        (MISTRAL, "[/INST]", "ab", True),
        (MISTRAL, "[/INST]", "[THINK]c[/THINK]c", False),
        (MISTRAL, "[/INST]", "[THINK]c[TOOL_CALLS][/THINK]ab", False),
        (MISTRAL, "[/INST]", "c[/THINK]ab", False),
        (MISTRAL, "[/INST][THINK]", "c[/THINK]ab", True),
        (GPT_OSS, ASSISTANT, ANALYSIS + FINAL + "ab", True),
        (GPT_OSS, ASSISTANT, FINAL + "ab", True),
        (GPT_OSS, ASSISTANT, ANALYSIS + FINAL + "abc", False),
        (GPT_OSS, ASSISTANT, ANALYSIS, False),
        (GPT_OSS, ASSISTANT, "ab", False),
        (GPT_OSS, ASSISTANT, ANALYSIS + CALL + "{}", False),
    ],
)
def test_reasoning_is_free_and_the_form_comes_behind_it(
    model: Model, prompt: str, completion: str, is_taken: bool
) -> None:
    assert model.takes(FORM, prompt, completion) == is_taken


@pytest.mark.parametrize(
    ("options", "text", "is_taken"),
    [
        (form(json=SCHEMA), '{"a": 1, "b": 2}', True),
        (form(json=SCHEMA), '{"a":1,\n "b": 2}', False),
        (form(json=SCHEMA), '{"a": 1, "b": 2, "c": 3}', False),
        (chat(response_format=LAX), '{"a": 1, "b": 2, "c": 3}', True),
        (form(json_object=True), '{"x": {"y": [1, "é"]}}', True),
        (form(choice=["é", "b\n"]), "b\n", True),
        (form(choice=["é", "b\n"]), "b", False),
        (form(grammar='root ::= "x" rest\nrest ::= [0-9]+'), "x12", True),
        (form(grammar='root ::= "x" rest\nrest ::= [0-9]+'), "12", False),
    ],
)
def test_the_form_is_kept_to_as_without_reasoning(options: Options, text: str, is_taken: bool) -> None:
    for model, prompt, lead in (
        (QWEN, "", ""),
        (QWEN, "<assistant>", "<think>c</think>\n"),
        (GPT_OSS, ASSISTANT, FINAL),
    ):
        assert model.takes(options, prompt, lead + text) == is_taken


def test_what_cannot_be_kept_to_is_refused_behind_reasoning_and_in_tags_too() -> None:
    schema = {"type": "object", "not": {"required": ["a"]}}
    tag = {
        "type": "structural_tag",
        "format": {"type": "sequence", "elements": [{"type": "json_schema", "json_schema": schema}]},
    }
    calling = chat(
        tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}], tool_choice="required"
    )
    for options in (form(json=schema), form(structural_tag=tag), calling):
        for model, prompt in ((QWEN, "<assistant>"), (GPT_OSS, ASSISTANT)):
            with pytest.raises(Unfit, match="not"):
                model.takes(options, prompt, "")


@pytest.mark.parametrize(
    ("model", "prompt"), [(QWEN, "<assistant><think>\n\n</think>\n\n"), (GPT_OSS, ASSISTANT + FINAL + "a"), (QWEN, "")]
)
def test_where_nothing_may_come_before_the_form_is_all(model: Model, prompt: str) -> None:
    assert model.parsers.lead(prompt) is None


@pytest.mark.parametrize(
    ("options", "completion", "is_taken"),
    [
        (MUST_CALL, ANALYSIS + CALL + '{"city": "é"}', True),
        (MUST_CALL, CALL.replace("find", "go") + '{"city": "é"}', True),
        (MUST_FIND, CALL + '{"city": "é"}', True),
        (MUST_FIND, CALL.replace("find", "go") + '{"city": "é"}', False),
        (MUST_CALL, CALL + "{}", False),
        (MUST_CALL, FINAL + '[{"name": "find", "parameters": {"city": "é"}}]', False),
    ],
)
def test_a_call_that_must_come_is_a_message_of_harmony(options: Options, completion: str, is_taken: bool) -> None:
    assert GPT_OSS.takes(options, ASSISTANT, completion) == is_taken
    if is_taken:
        parser = GPT_OSS.parsers.make(options, ASSISTANT)
        assert parser is not None
        events = [*parser.feed(completion), *parser.finish()]
        name = "go" if "functions.go" in completion else "find"
        assert events[-2:] == [ToolBegin(0, name), ToolArguments(0, '{"city": "é"}')]


@pytest.mark.parametrize(
    ("model", "prompt", "completion"),
    [(MISTRAL, "[/INST]", "[THINK]c[/THINK]ab"), (GPT_OSS, ASSISTANT, ANALYSIS + FINAL + "ab")],
)
def test_the_parser_reads_what_the_grammar_lets_a_model_write(model: Model, prompt: str, completion: str) -> None:
    parser = model.parsers.make(FORM, prompt)
    assert parser is not None
    events = [*parser.feed(completion), *parser.finish()]
    assert [type(each) for each in events] == [Reasoning, Content] and events[-1] == Content("ab")
