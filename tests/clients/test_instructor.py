"""instructor: answers as pydantic models, by schema and by tool."""

from collections.abc import Iterator
from typing import Any, Literal

import pytest

instructor = pytest.importorskip("instructor", reason="needs instructor: pip install instructor")
openai = pytest.importorskip("openai", reason="needs openai: pip install openai")
pydantic = pytest.importorskip("pydantic", reason="needs pydantic: pip install pydantic")

pytestmark = pytest.mark.clients

ANNA = [{"role": "user", "content": "Tell me about Anna, who is 31 years old and happy."}]


class Person(pydantic.BaseModel):  # type: ignore[misc,name-defined]  # the package may be absent
    name: str
    age: int
    mood: Literal["happy", "sad"]


@pytest.fixture(params=[instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS])
def client(request: pytest.FixtureRequest, url: str, key: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=300) as client:
        yield instructor.from_openai(client, mode=request.param)


def test_a_person(client: Any, model: str) -> None:
    person = client.chat.completions.create(
        model=model, messages=ANNA, response_model=Person, temperature=0, max_tokens=200, max_retries=0
    )
    assert (person.name, person.age, person.mood) == ("Anna", 31, "happy")


def test_a_person_grows_while_it_is_streamed(client: Any, model: str) -> None:
    people = list(
        client.chat.completions.create_partial(
            model=model, messages=ANNA, response_model=Person, temperature=0, max_tokens=200
        )
    )
    assert (people[-1].name, people[-1].age, people[-1].mood) == ("Anna", 31, "happy")
    assert any(person.age is None for person in people)
