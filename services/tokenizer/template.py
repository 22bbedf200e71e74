"""The chat template of a model: messages to the text of a prompt.

Templates are jinja2 as Hugging Face writes it, rendered as transformers does
(utils/chat_template_utils.py), in a sandbox and within limits of time and size. They come from the
model's files or the operator, never from a request.
"""

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from octavo.shared.errors import InvalidRequest, ModelError

_MAX_CHARACTERS = 8 << 20  # of a rendered prompt; a request's body is half as large
_MAX_CPU_S = 1.0  # looked at between two pieces of output; the process's parent ends what hangs inside one
_PROBE = "octavo probe"

# What a template in broken use of its messages raises besides jinja2's own errors.
_PYTHON_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)

Message = Mapping[str, object]


class ChatTemplate:
    """A compiled template that knows which forms of content it can take."""

    def __init__(self, source: str | None, *, bos_token: str = "", eos_token: str = "") -> None:
        """source: None for a model without a template; then every render fails.

        Raises ModelError when the source is not a template.
        """
        self._template: jinja2.Template | None = None
        if source is None:
            return
        environment = _make_environment()
        try:
            tree = environment.parse(source)
            names = meta.find_undeclared_variables(tree)
            code = environment.compile(tree)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelError(f"the model's chat template does not compile: {error}") from error
        self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
        tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._tokens = {name: token for name, token in tokens.items() if token}
        reserved = {"messages", "tools", "add_generation_prompt", *tokens, *environment.globals}
        self._settings = frozenset(names - reserved)
        self._reserved = frozenset(reserved)
        self._probe()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, object]] | None = None,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt for a conversation in OpenAI's format. Changes none of its arguments.

        continue_final_message: end behind the content of the last message, so that the model goes on with it.
        chat_template_kwargs: further names for the template (enable_thinking, documents); those that
            it does not use are ignored.
        Raises InvalidRequest when there is no template, or it refuses or cannot render the messages.
        """
        if self._template is None:
            raise InvalidRequest("this model has no chat template; use /v1/completions", param="messages")
        settings = dict(chat_template_kwargs or {})
        if taken := sorted(self._reserved & settings.keys()):
            raise InvalidRequest(f"{taken[0]!r} cannot be set by a request", param="chat_template_kwargs")
        context: dict[str, object] = {
            "documents": None,
            **{name: value for name, value in settings.items() if name in self._settings},
            **self._tokens,
            "messages": [self._prepare(index, message) for index, message in enumerate(messages)],
            "tools": tools,
            "add_generation_prompt": add_generation_prompt,
        }
        text = _render(self._template, context)
        return _up_to_content(text, messages[-1]) if continue_final_message else text

    def _prepare(self, index: int, message: Message) -> dict[str, object]:
        """A copy of a message in the form that this template can take."""
        prepared = {**message, "content": self._prepare_content(index, message)}
        calls = message.get("tool_calls")
        if isinstance(calls, list) and self._takes_argument_objects:
            prepared["tool_calls"] = [_with_argument_object(call) for call in calls]
        reasoning = next((message[name] for name in _REASONING_NAMES if message.get(name) is not None), None)
        if reasoning is not None:
            prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
        return prepared

    def _prepare_content(self, index: int, message: Message) -> object:
        """Content as text or as a list of parts; none is empty text, unless tool calls need it otherwise."""
        content, role = message.get("content"), message.get("role")
        if content is None:
            return self._no_content if message.get("tool_calls") else ""
        if isinstance(content, str):
            return [{"type": "text", "text": content}] if role in self._needs_parts else content
        texts = _texts(index, content)
        if role in self._takes_parts:
            return [{"type": "text", "text": text} for text in texts]
        return "\n".join(texts)

    def _probe(self) -> None:
        """Find out by small conversations what the template can take, for it does not say.

        _takes_parts: roles whose content may be a list of parts.
        _needs_parts: those of them whose content must be one, since a string does not show.
        _takes_argument_objects: tool calls have their arguments as objects, not as JSON.
        _no_content: what stands for the content of a message that is all tool calls, "" or None.
        """
        self._takes_parts: frozenset[object] = frozenset()
        self._needs_parts: frozenset[object] = frozenset()
        takes, needs = set(), set()
        for role, before, after in _ROLE_PROBES:
            from_text, from_parts = (
                self._try([*before, {"role": role, "content": content}, *after])
                for content in (_PROBE, [{"type": "text", "text": _PROBE}])
            )
            if _PROBE not in from_parts:
                continue
            if _PROBE not in from_text:
                takes.add(role)
                needs.add(role)
            elif from_text == from_parts:
                takes.add(role)
        self._takes_parts, self._needs_parts = frozenset(takes), frozenset(needs)
        forms = ((is_object, empty) for is_object in (True, False) for empty in ("", None))
        working = (form for form in forms if _PROBE in self._try(_tool_conversation(*form)))
        self._takes_argument_objects, self._no_content = next(working, (True, ""))

    def _try(self, messages: Sequence[Message]) -> str:
        """The rendered messages; "" when the template does not take them."""
        assert self._template is not None, "only a template is probed"
        context = {**self._tokens, "messages": messages, "tools": None, "documents": None}
        try:
            return _render(self._template, context | {"add_generation_prompt": False})
        except InvalidRequest:
            return ""


_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")  # what servers and templates call it

_USER: Message = {"role": "user", "content": "a"}
_ROLE_PROBES: tuple[tuple[str, list[Message], list[Message]], ...] = (
    ("system", [], [_USER]),
    ("user", [], []),
    ("assistant", [_USER], [_USER]),
)


def _up_to_content(text: str, message: Message) -> str:
    """A rendered conversation without what follows the content of its last message (as transformers cuts it)."""
    content = message.get("content")
    if isinstance(content, list):
        content = _texts(-1, content)[-1]
    if not isinstance(content, str) or not content.strip():
        raise InvalidRequest("continue_final_message: the last message has no text", param="continue_final_message")
    place = text.rfind(content.strip())
    if place < 0:
        raise InvalidRequest(
            "continue_final_message: the chat template does not show the last message as it is",
            param="continue_final_message",
        )
    end = place + len(content.lstrip())
    return text[:end] if text[place:end] == content.lstrip() else text[: place + len(content.strip())]


def _tool_conversation(has_object: bool, content: str | None) -> list[Message]:
    arguments = {"a": _PROBE}
    function = {"name": "f", "arguments": arguments if has_object else json.dumps(arguments)}
    call = {"id": "abcdefghi", "type": "function", "function": function}  # Mistral wants 9 characters
    answer = {"role": "tool", "tool_call_id": "abcdefghi", "name": "f", "content": "a"}
    return [_USER, {"role": "assistant", "content": content, "tool_calls": [call]}, answer]


def _texts(index: int, content: object) -> list[str]:
    """The texts of a content given as parts. Raises InvalidRequest for any other part."""
    if not isinstance(content, list):
        kind = type(content).__name__
        raise InvalidRequest(f"messages[{index}].content is {kind}; a string or a list is needed", param="messages")
    texts = []
    for position, part in enumerate(content):
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str):
            kind = str(part.get("type")) if isinstance(part, dict) else type(part).__name__
            raise InvalidRequest(
                f"messages[{index}].content[{position}] is of type {kind[:40]!r}; only text is supported",
                param="messages",
            )
        texts.append(text)
    return texts


def _with_argument_object(call: object) -> object:
    """A copy of a tool call whose arguments are an object and no longer its JSON."""
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    if not (isinstance(call, dict) and isinstance(function, dict) and isinstance(arguments, str)):
        return call
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("a tool call's arguments are not JSON", param="messages") from error
    return {**call, "function": {**function, "arguments": parsed}}


def _render(template: jinja2.Template, context: Mapping[str, object]) -> str:
    """Raises InvalidRequest for whatever goes wrong in the template or beyond its limits."""
    pieces: list[str] = []
    num_characters = 0
    deadline_s = time.thread_time() + _MAX_CPU_S
    try:
        for piece in template.generate(context):
            pieces.append(piece)
            num_characters += len(piece)
            if num_characters > _MAX_CHARACTERS:
                raise InvalidRequest(f"the rendered prompt has over {_MAX_CHARACTERS} characters", param="messages")
            if time.thread_time() > deadline_s:
                raise InvalidRequest(
                    f"the chat template needs over {_MAX_CPU_S} s for these messages", param="messages"
                )
    except jinja2.TemplateError as error:
        raise InvalidRequest(f"the chat template refuses the messages: {error}", param="messages") from error
    except _PYTHON_ERRORS as error:
        kind = type(error).__name__  # its text may quote the server's memory
        sentence = f"the model's chat template cannot render these messages: {kind}{_place_of(error)}"
        if context["tools"]:
            sentence += "; it may without the tools, or with other ones"
        raise InvalidRequest(sentence, param="messages") from error
    return "".join(pieces)


def _place_of(error: BaseException) -> str:
    """Which line of a template raised, as jinja2 has written it into the traceback; "" if that does not tell."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_code.co_filename in ("<template>", "<unknown>")]
    return f" at its line {lines[-1]}" if lines else ""


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    return environment


class _GenerationBlocks(Extension):
    """{% generation %}…{% endgeneration %}: marks for training; serving renders what is inside."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` without the attributes of the type, which lead out of the sandbox."""

    def __call__(self, *args: Mapping[str, object], **kwargs: object) -> dict[str, object]:
        return dict(*args, **kwargs)

    def fromkeys(self, names: Sequence[str], value: object = None) -> dict[str, object]:
        return dict.fromkeys(names, value)


class _Namespace(Namespace):
    """A namespace that takes no underscored names, by which a template could reach its insides."""

    # Without names of its own, as in jinja2, so that a template may call an attribute `self`.
    def __init__(*args: object, **kwargs: object) -> None:
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}, which begins with _")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is, where jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
