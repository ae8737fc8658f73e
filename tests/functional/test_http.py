"""A real daemon over HTTP: OpenAI's own client, unmodified, and the chat page in a browser.

The page's tests need Chromium and its driver (DEC-E5).
"""

from __future__ import annotations

import json
import shutil
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.functional.harness import Daemon, Network, network, wait_for

pytestmark = pytest.mark.functional
HI = [{"role": "user", "content": "hi"}]


OPTIONS = {"BLYAND_HTTP_LISTEN": "127.0.0.1:0", "BLYAND_HTTP_MAX_REQUESTS": "16"}


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Iterator[Network]:
    with pytest.MonkeyPatch.context() as environment:
        for name, value in OPTIONS.items():
            environment.setenv(name, value)
        with network(tmp_path_factory.mktemp("http") / "d", 1) as made:
            made[0].call("model.create", preset="tiny")
            wait_for(lambda: len(made[0].hosted()) == 13, "it holds all groups")
            wait_for(lambda: fetch(made[0], "/ready")[0] == 200, "it is ready")
            yield made


@pytest.fixture
def node(net: Network) -> Daemon:
    return net[0]


@pytest.fixture
def client(node: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=node.status()["http"] + "/v1",
        api_key=token_of(node),
        max_retries=0,
        timeout=60,
    ) as made:
        yield made


def token_of(node: Daemon) -> str:
    return (node.home / "http.token").read_text().strip()


def fetch(
    node: Daemon, path: str, body: Any = None, **headers: str
) -> tuple[int, Any, Any]:
    """Return status, headers and body of a request with the token."""
    sent = {"authorization": f"Bearer {token_of(node)}", **headers}
    raw = None
    if body is not None:
        sent["content-type"] = "application/json"
        raw = json.dumps(body).encode()
    request = urllib.request.Request(node.status()["http"] + path, raw, sent)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def under_way(node: Daemon) -> int:
    return len(node.call("infer.list")["requests"])


# The client


def test_models(client: openai.OpenAI, node: Daemon):
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert model.created > 1_600_000_000
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model is called"):
        client.models.retrieve("none")


def test_completions_say_what_the_control_socket_says(
    client: openai.OpenAI, node: Daemon
):
    told = node.call("infer.generate", prompt="def ", max_tokens=12)
    made = client.completions.create(
        model="tiny", prompt="def ", max_tokens=12, temperature=0
    )
    assert made.choices[0].text == told["text"]
    assert made.choices[0].finish_reason == "length"
    assert made.usage is not None and made.usage.completion_tokens == 12
    assert made.model_extra is not None
    assert made.model_extra["blyan"]["cost_micro"] == told["cost_micro"]
    pieces = client.completions.create(
        model="tiny",
        prompt=list(b"def "),
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(pieces)
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == told["text"]
    assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 16


def test_choices_seeds_stops_and_probabilities(client: openai.OpenAI):
    def texts(**more: Any) -> list[str]:
        made = client.completions.create(model="tiny", prompt="a", max_tokens=8, **more)
        return [choice.text for choice in made.choices]

    three = texts(n=3, seed=5)
    assert len(set(three)) == 3 and texts(n=3, seed=5) == three
    greedy = texts(temperature=0, logit_bias={str(ord("Z")): 100})
    assert greedy == ["Z" * 8]
    assert texts(stop=["ZZZ"], temperature=0, logit_bias={"90": 100}) == [""]
    scored = client.completions.create(
        model="tiny", prompt="abc", max_tokens=2, logprobs=3, echo=True, temperature=0
    )
    told = scored.choices[0].logprobs
    assert told is not None and told.tokens is not None
    assert told.tokens[:3] == ["a", "b", "c"] and len(told.tokens) == 5
    assert told.token_logprobs is not None and told.token_logprobs[0] is None
    assert told.top_logprobs is not None and len(told.top_logprobs[-1]) == 3


def test_chat_whole_and_streamed(client: openai.OpenAI):
    asked: dict[str, Any] = dict(model="tiny", messages=HI, max_tokens=6, seed=1)
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    choice = whole.choices[0]
    assert choice.message.role == "assistant" and choice.logprobs is not None
    assert len(choice.logprobs.content or []) == 6
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**asked, stream=True)
    )
    assert text == choice.message.content
    bias = {str(ord("Z")): 100}
    with client.chat.completions.stream(
        model="tiny", messages=HI, logit_bias=bias, stop="ZZZ", temperature=0
    ) as stream:
        done = stream.get_final_completion().choices[0]
    assert (done.finish_reason, done.message.content) == ("stop", "")


def test_an_answer_fits_its_json_schema(client: openai.OpenAI):
    schema = {
        "type": "object",
        "properties": {"good": {"type": "boolean"}, "mark": {"enum": [1, 2, 3]}},
        "required": ["good", "mark"],
        "additionalProperties": False,
    }
    asked: dict[str, Any] = dict(
        model="tiny",
        messages=HI,
        max_tokens=80,
        temperature=0,
        logit_bias={"32": -100, "10": -100, "9": -100, "13": -100},  # no blanks
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "judgement", "schema": schema},
        },
    )
    choice = client.chat.completions.create(**asked).choices[0]
    judged = json.loads(choice.message.content or "")
    assert isinstance(judged["good"], bool) and judged["mark"] in (1, 2, 3)
    assert choice.finish_reason == "stop"
    text = "".join(
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**asked, stream=True)
    )
    assert json.loads(text) == judged
    asked["response_format"]["json_schema"]["schema"] = {"type": "nonsense"}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**asked)


def test_errors_are_those_that_the_client_knows(client: openai.OpenAI, node: Daemon):
    def complete(**more: Any) -> Any:
        asked = {"model": "tiny", "prompt": "a", "max_tokens": 1, **more}
        return client.completions.create(**asked)

    with pytest.raises(openai.NotFoundError) as missing:
        complete(model="none")
    assert missing.value.code == "model_not_found"
    for wrong in (
        dict(max_tokens=0),
        dict(max_tokens=-1),
        dict(max_tokens=10**9),
        dict(temperature=9),
        dict(prompt=""),
        dict(prompt=[300]),
        dict(extra_body={"tempurature": 1}),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            complete(**wrong)
        assert refused.value.param and len(refused.value.message) > 20
    with pytest.raises(openai.BadRequestError) as long:
        complete(prompt="x" * 5000)
    assert long.value.code == "context_length_exceeded"
    stranger = client.with_options(api_key="sk-" + "x" * 40)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    with pytest.raises(openai.APIStatusError) as big:
        complete(prompt="x" * (1 << 20))
    assert big.value.status_code == 413


def test_who_goes_away_is_not_answered_on(client: openai.OpenAI, node: Daemon):
    for _ in range(3):
        stream = client.completions.create(
            model="tiny", prompt="a", max_tokens=250, n=8, stream=True
        )
        next(iter(stream))
        assert under_way(node) > 0
        stream.close()
    wait_for(lambda: under_way(node) == 0, "the answers are given up", 20.0)


def test_more_than_a_node_holds_hear_429_and_the_others_are_answered(
    client: openai.OpenAI, node: Daemon
):
    def one(_: int) -> int:
        try:
            client.completions.create(model="tiny", prompt="a", max_tokens=30)
            return 200
        except openai.RateLimitError as error:
            assert error.response.headers["retry-after"] == "1"
            return 429

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(one, range(40)))
    assert set(answers) == {200, 429}
    assert fetch(node, "/health")[0] == 200 and under_way(node) == 0


# What is not OpenAI's


def test_rpc_and_metrics(node: Daemon):
    def call(method: str, **params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        status, _, raw = fetch(node, "/rpc", body)
        assert status == 200
        return [json.loads(line) for line in raw.splitlines()]

    (tips,) = call("chain.tips")
    assert tips["result"]["finalised"] >= 1
    for secret in ("node.stop", "node.page", "node.config", "ledger.send"):
        (refused,) = call(secret)
        assert "control socket only" in refused["error"]["message"]
    *items, last = call("infer.generate", prompt="a", max_tokens=3)
    assert [item["method"] for item in items] == ["stream"] * 3
    assert len(last["result"]["token_ids"]) == 3
    status, headers, text = fetch(node, "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    assert b'blyan_http_requests_total{path="/rpc",status="200"}' in text
    assert fetch(node, "/rpc", {}, authorization="")[0] == 401


def test_a_page_of_another_origin_and_a_rebound_name_are_refused(node: Daemon):
    assert fetch(node, "/v1/models", origin="https://evil.example")[0] == 403
    assert fetch(node, "/v1/models", host="evil.example")[0] == 421
    assert fetch(node, "/", host="evil.example")[0] == 421


def test_the_token_is_private_and_status_tells_the_address(node: Daemon):
    file = node.home / "http.token"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    place = json.loads((node.home / "http.json").read_text())
    url = node.status()["http"]
    assert place["url"] == url and url.startswith("http://127.0.0.1:")
    page = node.call("node.page")
    assert page["url"] == f"{url}/#token={token_of(node)}"


def test_the_page_may_talk_to_nobody_else(node: Daemon):
    status, headers, body = fetch(node, "/", authorization="")
    assert status == 200 and b"<script src=" in body
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert b"http://" not in body and b"https://" not in body
    for path in ("/page.js", "/page.css"):
        assert fetch(node, path)[0] == 200


# The page in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(
            "no chromium and chromedriver here (apt-get install chromium-driver)"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield made
    finally:
        made.quit()


class Page:
    """The page, by what people see of it."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    def at(self, selector: str) -> Any:
        return self._browser.find_element("css selector", selector)

    def shows(self, selector: str) -> bool:
        return bool(self.at(selector).is_displayed())

    def text(self, selector: str) -> str:
        return str(self.at(selector).text)

    def ask(self, text: str) -> None:
        self.at("#prompt").send_keys(text)
        self.at("#send").click()

    def is_still(self) -> bool:
        return not self._browser.find_elements("css selector", ".busy")


def test_a_chat_in_the_browser(browser: Any, node: Daemon):
    page = Page(browser)
    browser.set_window_size(1400, 900)
    browser.get(node.status()["http"] + "/")
    wait_for(lambda: page.shows("#door"), "it asks for the token")
    assert not page.shows("#composer")
    page.at("#token").send_keys("wrong-token\n")
    wait_for(lambda: page.shows("#notice"), "it says that the token is wrong")
    browser.get(node.call("node.page")["url"])
    browser.refresh()  # the fragment alone loads nothing
    wait_for(lambda: page.text("#model") == "tiny", "it opens")
    assert "token" not in browser.current_url
    assert page.shows("#composer") and page.shows("#template")
    page.at("#most").send_keys("24")
    page.ask("which experts?")
    wait_for(page.is_still, "the answer is complete")
    assert page.text("#messages .user") == "which experts?"
    assert page.text("#messages .assistant .body")
    assert page.text("#count") == "24"
    assert float(page.text("#speed")) > 0
    assert page.text("#cost").endswith("BLY")
    assert "this node" in page.text("#peers")
    assert "most visited: layer" in page.text("#hottest")
    drawn = "return document.getElementById('heat').width"
    assert browser.execute_script(drawn) > 100

    page.at("#form option:last-child").click()  # another template, by name
    page.at("#most").clear()
    page.ask("and now")
    wait_for(lambda: page.shows("#stop"), "it can be stopped")
    page.at("#stop").click()
    wait_for(page.is_still, "it stops")
    wait_for(lambda: under_way(node) == 0, "and so does the node", 20.0)

    # nothing was blocked, nothing failed but what was refused on purpose
    for line in browser.get_log("browser"):
        assert "401" in line["message"], line


@pytest.mark.parametrize("width", [380, 1400])
def test_the_page_fits_its_window(browser: Any, node: Daemon, width: int):
    sizes = {
        "width": width,
        "height": 760,
        "deviceScaleFactor": 1,
        "mobile": width < 600,
    }
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", sizes)
    browser.get(node.call("node.page")["url"])
    browser.refresh()
    page = Page(browser)
    wait_for(lambda: page.shows("#composer"), "it opens")
    wide = "return document.documentElement.scrollWidth"
    assert browser.execute_script(wide) == width
    box = page.at("#send").rect
    assert 0 < box["x"] < width - box["width"] and box["y"] + box["height"] <= 760
    assert page.at("#more").get_attribute("open") == ("true" if width == 1400 else None)
