"""The page of httpserver.py in headless Chromium, driven through DevTools over a pipe: nothing but Python and Debian's chromium."""

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from conftest import DEADLINE, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
HOSTILE = [
    "<img src=x onerror=document.title='owned'>",
    "\"onmouseover='x'",
    "</script><script>document.title='owned'</script>",
    "a&amp;b #?%41.txt",
    "new\nline",
    "ü \u202e txt",
]


class Browser:
    """Chromium with a page in it. Messages are JSON, ended by NUL, on descriptors 3 and 4."""

    def __init__(self, profile):
        to_read, self.to = os.pipe()
        self.of, to_write = os.pipe()

        def place():
            high = [
                os.dup2(number, 10 + number, inheritable=False) for number in (to_read, to_write)
            ]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        self.profile = profile
        self.process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--remote-debugging-pipe",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--password-store=basic",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            preexec_fn=place,
            close_fds=False,
            env={**os.environ, "HOME": str(profile)},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.numbers, self.rest, self.session, self.answers, self.dialogs = (
            itertools.count(1),
            b"",
            None,
            [],
            [],
        )
        pages = until(
            lambda: [
                each
                for each in self.call("Target.getTargets")["targetInfos"]
                if each["type"] == "page"
            ],
            "the first page",
        )
        self.session = self.call(
            "Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True
        )["sessionId"]
        for domain in "Page", "Runtime", "DOM", "Network":
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        message = {
            "id": number,
            "method": method,
            "params": params,
            **({"sessionId": self.session} if self.session else {}),
        }
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (got := self.read()).get("id") != number:
            if got.get("method") == "Page.javascriptDialogOpening":
                self.dialogs.append(got["params"]["message"])
                answer = self.answers.pop(0)
                late = {"accept": answer is not None, "promptText": answer or ""}
                os.write(
                    self.to,
                    json.dumps(
                        {
                            "id": next(self.numbers),
                            "method": "Page.handleJavaScriptDialog",
                            "params": late,
                            "sessionId": self.session,
                        }
                    ).encode()
                    + b"\0",
                )
        if got.get("error", {}).get("message") == "Inspected target navigated or closed":
            # asked of a page that was being left: no value, and wait() asks the next one
            return {"result": {}}
        assert "error" not in got, f"{method}: {got}"
        return got["result"]

    def read(self):
        while b"\0" not in self.rest:
            chunk = os.read(self.of, 1 << 20)
            assert chunk, "chromium ended"
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def run(self, script):
        result = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, url):
        self.call("Page.navigate", url=url)
        until(
            lambda: (
                self.run(f"location.href.startsWith({url!r}) && document.readyState") == "complete"
            ),
            url,
        )

    def wait(self, script):
        deadline = time.monotonic() + DEADLINE
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, (
                f"waited in vain for {script}:\n{self.run('document.body.innerText')}"
            )
        return value

    def choose(self, selector, *paths):
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        self.call(
            "DOM.setFileInputFiles",
            files=list(map(str, paths)),
            nodeId=self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"],
        )

    def drop(self, *paths):
        data = {"items": [], "files": list(map(str, paths)), "dragOperationsMask": 1}
        for kind in "dragEnter", "dragOver", "drop":
            self.call("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    def look(self, path, width, scheme):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        if path:
            path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        return self.run("document.documentElement.scrollWidth <= innerWidth")

    def close(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        # a folder beside the profile, because a socket's name must be short
        with contextlib.suppress(OSError):
            shutil.rmtree(os.path.dirname(os.readlink(self.profile / "SingletonSocket")))
        os.close(self.to)
        os.close(self.of)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Browser(tmp_path_factory.mktemp("chromium"))
    yield chromium
    chromium.close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "www").mkdir()
    return tmp_path / "www"


def names(browser):
    return browser.run(
        "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).map(row => row.querySelector('a').textContent)"
    )


def test_hostile_names_are_text_and_lead_to_their_files(browser, spawn, folder):
    for name in HOSTILE:
        (folder / name.replace("/", "\u2215")).write_text(name)
    (folder / HOSTILE[0]).rename(folder / "x")
    (folder / HOSTILE[0]).mkdir()
    (folder / HOSTILE[0] / "inner").touch()
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    assert browser.run("document.title") == "/"
    assert sorted(names(browser)) == sorted(
        [HOSTILE[0] + "/", "x", *(name.replace("/", "\u2215") for name in HOSTILE[1:])]
    )
    assert browser.run("document.querySelectorAll('img,[onmouseover]').length") == 0
    texts = browser.run(
        "Promise.all([...document.querySelectorAll('tbody tr[data-folder=\"0\"] a')].map(async a => (await fetch(a.href)).text()))"
    )
    assert sorted(texts) == sorted(HOSTILE)
    browser.run("document.querySelector('tbody a').click()")
    browser.wait("document.readyState === 'complete' && document.title.includes('img')")
    assert (
        names(browser) == ["inner"]
        and browser.run("document.querySelectorAll('nav a').length") == 2
    )


def test_sorting_filtering_and_keys(browser, spawn, folder):
    for name, size, when in ("b10", 5, 300), ("b9", 50, 100), ("a", 500, 200):
        (folder / name).write_bytes(bytes(size))
        os.utime(folder / name, (when, when))
    (folder / "zdir").mkdir()
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    assert names(browser)[0] == "zdir/"
    click = "document.querySelectorAll('th button')[{}].click()"
    browser.run(click.format(1))
    assert names(browser) == ["zdir/", "b10", "b9", "a"]
    browser.run(click.format(2))
    assert names(browser) == ["zdir/", "b9", "a", "b10"]
    browser.run(click.format(0) + ";" + click.format(0))
    assert names(browser) == ["zdir/", "b10", "b9", "a"]
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="/", text="/")
    browser.call("Input.insertText", text="B1")
    assert names(browser) == ["b10"] and browser.run("document.activeElement.id") == "filter"
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowDown")
    assert browser.run("document.activeElement.textContent") == "b10"


def test_choosing_and_dropping_files_and_folders_uploads_them(browser, spawn, folder, tmp_path):
    source = tmp_path / "source"
    (source / "tree" / "deep er").mkdir(parents=True)
    files = {
        name: os.urandom(size)
        for name, size in (("one.txt", 10), ("empty", 0), ("ü #1'.bin", 3000000))
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    (source / "tree" / "deep er" / "leaf").write_bytes(b"leaf")
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    browser.choose("#pick", *(source / name for name in files))
    browser.wait(
        "document.querySelectorAll('#jobs .done').length === 3 && document.querySelectorAll('tbody tr').length === 3"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    browser.drop(source / "tree", source / "one.txt")
    browser.wait(
        "document.querySelectorAll('#jobs .done').length === 5 && document.querySelectorAll('tbody tr').length === 5"
    )
    assert (folder / "tree" / "deep er" / "leaf").read_bytes() == b"leaf"
    assert (folder / "one (1).txt").read_bytes() == files["one.txt"]
    assert browser.run(
        "document.getElementById('all').value === document.getElementById('all').max && !document.getElementById('total').hidden"
    )


def test_an_upload_goes_on_after_a_lost_link(browser, spawn, folder, tmp_path, proxy):
    data = os.urandom(3500000)
    (tmp_path / "big").write_bytes(data)
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{proxy(server.port, cut_at=1000000, toward='server').port}/")
    browser.choose("#pick", tmp_path / "big")
    browser.wait("document.querySelectorAll('#jobs .done').length === 1")
    assert (folder / "big").read_bytes() == data and len(os.listdir(folder)) == 1
    assert server.stop().count("PATCH") >= 4


def test_an_upload_goes_on_after_a_link_that_stood_still(browser, spawn, folder, tmp_path, proxy):
    # little enough for the browser to be done with sending
    (tmp_path / "big").write_bytes(os.urandom(500000))
    # chromium itself repeats what gets 408 on a connection that it kept
    server = spawn("httpserver.py", folder, "--timeout", "1", "--header", "Connection: close")
    way = proxy(server.port, hold_at=100000, toward="server")
    browser.open(f"http://127.0.0.1:{way.port}/")
    browser.choose("#pick", tmp_path / "big")
    server.wait_for('"PATCH .*" 408 ')
    way.go.set()
    browser.wait("document.querySelectorAll('#jobs .done').length === 1")
    assert (folder / "big").read_bytes() == (tmp_path / "big").read_bytes()


def test_an_upload_whose_last_answer_is_lost_is_not_sent_again(browser, spawn, folder, tmp_path):
    (tmp_path / "x").write_bytes(b"whole")
    os.utime(tmp_path / "x", (1500000000, 1500000000))
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.run(
        "{ const begin = create; create = async job => { job.url = await begin(job); await new Promise(good => { job.sent = 0; send(job).then(good); });"
        " throw new Error('the answer is lost'); }; }"
    )
    browser.choose("#pick", tmp_path / "x")
    browser.wait("document.querySelectorAll('#jobs .done').length === 1")
    assert os.listdir(folder) == ["x"] and (folder / "x").read_bytes() == b"whole"
    assert server.stop().count("PATCH") == 1 and int((folder / "x").stat().st_mtime) == 1500000000


def test_cancel_leaves_nothing(browser, spawn, folder, tmp_path, proxy):
    (tmp_path / "big").write_bytes(os.urandom(20000000))
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{proxy(server.port, delay=0.02, toward='server').port}/")
    browser.choose("#pick", tmp_path / "big")
    browser.wait(
        "document.querySelector('#jobs progress') && document.querySelector('#jobs progress').value > 0"
    )
    browser.run("document.querySelector('#jobs button').click()")
    browser.wait("document.querySelectorAll('#jobs .failed').length === 1")
    until(lambda: not os.listdir(folder), "the part to be deleted")


@pytest.mark.parametrize(
    "change",
    [
        "{ const begin = create; create = async job => { const url = await begin(job); job.stop.click(); return url; }; }",
        "send = async job => { job.request = new XMLHttpRequest(); setTimeout(() => job.stop.click()); throw new Error('the link is lost'); }",
    ],
    ids=["while it begins", "while it waits for the link"],
)
def test_cancel_ends_an_upload_at_any_time(change, browser, spawn, folder, tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 1000)
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.run(change)
    browser.choose("#pick", tmp_path / "x")
    browser.wait("document.querySelectorAll('#jobs .failed').length === 1")
    assert (
        browser.run(
            "document.querySelector('#jobs small').textContent + ' ' + document.querySelector('#jobs button').textContent + sum + done"
        )
        == "cancelled clear00"
    )
    server.wait_for('"DELETE /x[?]')
    log = server.stop()
    assert "PATCH" not in log and not os.listdir(folder)


def test_new_folder_rename_and_delete_after_a_question(browser, spawn, folder):
    (folder / "old name").write_bytes(b"x")
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    browser.answers = ["a/b <new>", "folder", "new ü?", None, ""]
    browser.run("document.getElementById('mkdir').click()")  # a slash is no part of a name
    browser.wait("document.getElementById('status').textContent.includes('403')")
    browser.run("document.getElementById('mkdir').click()")
    browser.wait("document.querySelector('a[href=\"folder/\"]') !== null")
    browser.run("document.querySelector('[title=\"Rename old name\"]').click()")
    browser.wait("document.querySelector('[data-name=\"new ü?\"]') !== null")
    assert sorted(os.listdir(folder)) == ["folder", "new ü?"]
    browser.run("document.querySelector('[title=\"Delete folder\"]').click()")
    assert "everything in it" in browser.dialogs[-1] and (folder / "folder").exists()
    browser.run("document.querySelector('[title=\"Delete folder\"]').click()")
    browser.wait("document.querySelector('a[href=\"folder/\"]') === null")
    assert os.listdir(folder) == ["new ü?"]


def test_with_a_password_the_page_changes_what_it_may(browser, spawn, folder, tmp_path):
    server = spawn("httpserver.py", folder, "--password", "gr\u00fcn:x")
    (tmp_path / "new.txt").write_text("new")
    browser.call("Page.navigate", url=f"http://any:gr%C3%BCn%3Ax@127.0.0.1:{server.port}/")
    browser.wait(f"location.port === '{server.port}' && document.readyState === 'complete'")
    browser.choose("#pick", tmp_path / "new.txt")
    browser.wait("rows().some(row => row.dataset.name === 'new.txt')")
    assert (folder / "new.txt").read_text() == "new"
    browser.run(
        "window.confirm = () => true; rows().find(row => row.dataset.name === 'new.txt').querySelector('[title^=Delete]').click()"
    )
    until(lambda: not (folder / "new.txt").exists(), "it is deleted")
    log = server.stop()
    # nor is the body sent twice
    assert (
        '"PATCH /new.txt?' in log
        and not re.search('"PATCH .*" 401 ', log)
        and "gr\u00fcn" not in log
    )


def test_it_fits_wide_and_narrow_light_and_dark_and_loads_nothing_else(
    browser, spawn, folder, tmp_path, request
):
    for number in range(30):
        (folder / f"file {number} {'long ' * (number % 7) * 5}.txt").write_bytes(
            bytes(number * 12345)
        )
    (folder / "folder").mkdir()
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    keep = os.environ.get("SCREENSHOTS")
    for width in 360, 1280:
        for scheme in "light", "dark":
            assert browser.look(
                keep and tmp_path.__class__(keep) / f"{width}-{scheme}.png", width, scheme
            ), f"scrolls sideways at {width}"
    assert browser.run("getComputedStyle(document.documentElement).colorScheme") == "light dark"
    assert browser.run("performance.getEntriesByType('resource').length") == 0
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_without_javascript_a_form_uploads(browser, spawn, folder, tmp_path):
    (tmp_path / "plain").write_bytes(b"plain")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
        browser.choose("form input[type=file]", tmp_path / "plain")
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        button = browser.call("DOM.querySelector", nodeId=root, selector="form button")["nodeId"]
        box = browser.call("DOM.getBoxModel", nodeId=button)["model"]["content"]
        for kind in "mousePressed", "mouseReleased":
            browser.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0] + 5,
                y=box[1] + 5,
                button="left",
                clickCount=1,
            )
        until(lambda: (folder / "plain").exists(), "the upload")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert (folder / "plain").read_bytes() == b"plain"
