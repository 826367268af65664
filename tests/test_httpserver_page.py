"""The page of httpserver.py in headless Chromium, driven through DevTools over a pipe: nothing but Python and Debian's chromium."""

import base64
import contextlib
import io
import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import time
import zipfile

import pytest
from conftest import DEADLINE, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="needs chromium"),
    pytest.mark.long(20),  # in one process: chromium starts once
]
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
        found = until(
            lambda: [
                each["targetId"]
                for each in self.call("Target.getTargets")["targetInfos"]
                if each["type"] == "page"
            ],
            "the first page",
        )
        self.attach(found[0])

    def attach(self, page):
        self.page, self.session = page, None
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self.session = attached["sessionId"]
        for domain in "Page", "Runtime", "DOM", "Network":
            self.call(f"{domain}.enable")

    def take_new_page(self):
        """A page that was left in the middle of something, its server gone, held up the next one."""
        old, self.session = self.page, None
        self.attach(self.call("Target.createTarget", url="about:blank")["targetId"])
        self.call("Target.closeTarget", targetId=old)

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
            assert select.select([self.of], [], [], DEADLINE)[0], "chromium does not answer"
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
        # an element is {} here
        while (value := self.run(script)) in (None, False, 0, ""):
            assert time.monotonic() < deadline, (
                f"waited in vain for {script}:\n{self.run('document.body.innerText.slice(0, 2000)')}"
            )
            time.sleep(0.02)  # or most of what the processor does would be the question
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


@pytest.fixture(autouse=True)
def new_page(browser):
    browser.take_new_page()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "www").mkdir()
    return tmp_path / "www"


def key(browser, name, text="", **more):
    browser.call("Input.dispatchKeyEvent", type="keyDown", key=name, text=text, **more)
    browser.call("Input.dispatchKeyEvent", type="keyUp", key=name)


def click(browser, script):
    """A click of the mouse in the middle of an element, which counts as a person's."""
    x, y = browser.run(
        f"{{ const box = {script}.getBoundingClientRect(); [box.x + box.width / 2, box.y + box.height / 2] }}"
    )
    for kind in "mousePressed", "mouseReleased":
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


def states(browser):
    """What the page says of its uploads: name, state, note."""
    return sorted(browser.run("[...jobs].map(job => [job.file.name, job.state, job.note])"))


def finished(browser, count, state="done"):
    browser.wait(f"!busy() && [...jobs].filter(job => job.state === '{state}').length === {count}")


def again(browser):
    """Load the page anew."""
    browser.run("window.old = true")
    browser.call("Page.reload")
    browser.wait("!window.old && document.readyState === 'complete'")


def names(browser):
    return browser.run(
        "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).map(row => linkOf(row).textContent)"
    )


def test_hostile_names_are_text_and_lead_to_their_files(browser, spawn, folder):
    for name in HOSTILE:
        (folder / name.replace("/", "\u2215")).write_text(name)
    (folder / HOSTILE[0]).rename(folder / "x")
    (folder / HOSTILE[0]).mkdir()
    (folder / HOSTILE[0] / "inner").touch()
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    assert browser.run("document.title") == "www"
    assert sorted(names(browser)) == sorted(
        [HOSTILE[0] + "/", "x", *(name.replace("/", "\u2215") for name in HOSTILE[1:])]
    )
    assert browser.run("document.querySelectorAll('img,[onmouseover]').length") == 0
    texts = browser.run(
        "Promise.all([...rows()].filter(row => !isFolder(row)).map(async row => (await fetch(hrefOf(row))).text()))"
    )
    assert sorted(texts) == sorted(HOSTILE)
    browser.run("linkOf(rows()[0]).click()")
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
    assert names(browser) == ["zdir/", "a", "b9", "b10"]
    press = "document.querySelectorAll('th button')[{}].click()"
    browser.run(press.format(1))
    assert names(browser) == ["zdir/", "b10", "b9", "a"]
    browser.run(press.format(2))
    assert names(browser) == ["zdir/", "b9", "a", "b10"]
    browser.run(press.format(0) + ";" + press.format(0))
    assert names(browser) == ["zdir/", "b10", "b9", "a"]
    key(browser, "/", "/")
    browser.call("Input.insertText", text="B")
    assert names(browser) == ["b10", "b9"] and browser.run("document.activeElement.id") == "filter"
    assert browser.run("$('shown').textContent") == "2 of 4"
    key(browser, "ArrowDown")
    assert browser.run("document.activeElement.textContent") == "b10"
    key(browser, "ArrowUp")
    browser.call("Input.insertText", text="x")
    assert names(browser) == [] and browser.run("$('shown').textContent") == "nothing matches"
    key(browser, "Escape")
    assert len(names(browser)) == 4 and browser.run("$('shown').textContent") == ""
    # Enter opens the only match; order and filter are kept on the way back, the order below too
    browser.call("Input.insertText", text="zd")
    key(browser, "Enter", "\r")
    browser.wait("location.pathname === '/zdir/' && document.readyState === 'complete'")
    assert browser.run("[column, way].join()") == "1,-1"
    key(browser, "ArrowUp", modifiers=1)
    browser.wait("location.pathname === '/' && document.readyState === 'complete'")
    assert names(browser) == ["zdir/"] and browser.run("$('filter').value") == "zd"
    key(browser, "Escape")
    assert names(browser) == ["zdir/", "b10", "b9", "a"]
    browser.run("sortBy(1)")


def test_a_filter_holds_in_the_folder_below_unless_it_leaves_nothing(browser, spawn, folder):
    for path in ("jpgs/a.jpg", "jpgs/b.txt", "other/c.txt"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()
    port = spawn("httpserver.py", folder).port
    browser.open(f"http://127.0.0.1:{port}/")
    browser.run("$('filter').value = 'jpg'; filter(true)")
    browser.open(f"http://127.0.0.1:{port}/jpgs/")
    assert names(browser) == ["a.jpg"] and browser.run("$('shown').textContent") == "1 of 2"
    browser.open(f"http://127.0.0.1:{port}/other/")
    assert names(browser) == ["c.txt"] and browser.run("$('filter').value") == ""


def test_the_server_and_the_page_have_one_natural_order(browser, spawn, folder):
    some = [
        "a1",
        "a2",
        "a10",
        "A02b",
        "a",
        "a-1",
        "a01",
        "Ä3",
        "ä20",
        "z",
        "Z9",
        "ß",
        "ss",
        "10",
        "9",
    ]
    some += [
        "img 100 b",
        "img 99 c",
        "İ1",
        "\uff01",
        "\U0001f600",
        "é",
        "e\u0301 2",
        "f",
        "x" + "1" * 30,
    ]
    for name in some:
        (folder / name).touch()
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    shown = names(browser)
    browser.run("sort()")
    assert names(browser) == shown and len(shown) == len(set(some))
    place = shown.index
    assert place("9") < place("10") < place("a1") < place("a2") < place("Ä3") < place("a10")
    assert place("e\u0301 2") < place("f") and place("img 99 c") < place("img 100 b")


def test_folders_show_how_many_entries_they_have_and_an_empty_one_says_so(browser, spawn, folder):
    for name in ("one", "many", "none"):
        (folder / name).mkdir()
    for name in ("one/a", "one/.hidden", *(f"many/{number}" for number in range(1200))):
        (folder / name).touch()
    port = spawn("httpserver.py", folder).port
    browser.open(f"http://127.0.0.1:{port}/")
    shown = dict(browser.run("rows().map(row => [nameOf(row), row.cells[2].textContent.trim()])"))
    assert shown == {"one": "1 item", "many": "1,200 items", "none": "empty"}
    assert browser.run("document.querySelector('nav').textContent.trim()") == "www"
    browser.open(f"http://127.0.0.1:{port}/none/")
    assert browser.run("document.title") == "none"
    assert browser.run("document.querySelector('nav').textContent.trim()") == "www / none"
    # nothing to choose, sort or load in it
    shown = "[$('empty'), $('whole'), document.querySelector('thead')].map(each => each.hidden)"
    assert browser.run(shown) == [False, True, True]
    (folder / "none" / "new").touch()
    browser.run("look()")
    assert names(browser) == ["new"]
    assert browser.run(shown) == [True, False, False]
    gap = "$('filter').closest('.tools').offsetWidth - $('filter').offsetWidth"
    browser.look(None, 390, "light")
    assert browser.run(gap) == 0
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_a_page_shows_what_is_new_without_losing_focus_choice_or_place(browser, spawn, folder):
    for number in range(300):
        (folder / f"file {number}").touch()
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.run(
        "const row = rowNamed('file 150'); linkOf(row).focus(); choose([row, rowNamed('file 7')])"
    )
    top = "Math.round(rowNamed('file 150').getBoundingClientRect().top)"
    before = browser.run(f"scrollY > 100 && {top}")
    for name in ("a new one", "file 42 b", "z"):
        (folder / name).write_bytes(b"12345")
    (folder / "file 299").unlink()
    browser.run("look()")
    browser.wait("rowNamed('z')")
    assert browser.run("document.activeElement.textContent") == "file 150"
    assert browser.run("chosen().map(nameOf).join()") == "file 7,file 150"
    after = browser.run(f"new Promise(go => requestAnimationFrame(() => go({top})))")
    assert abs(after - before) <= 1  # rows have fractions of a pixel
    assert browser.run("rows().length") == 302
    assert browser.run("nameOf(rows()[0])") == "a new one"
    # after a while its tag tells that nothing is new
    os.utime(folder, (1000000000, 1000000000))
    browser.run("look().then(look)")
    tag = "{'Accept': 'text/html', 'If-None-Match': `\"${list.dataset.tag}\"`}"
    assert browser.run(f"net(here, {{headers: {tag}}}).then(answer => answer.status)") == 304
    assert '" 304 ' not in server.err  # or the log would grow as long as a page is open
    (folder / "file 150").unlink()
    browser.run("document.onvisibilitychange()")
    browser.wait("!rowNamed('file 150')")
    assert browser.run("nameOf(document.activeElement.closest('tr'))") == "file 151"


def test_a_folder_that_is_gone_says_so_until_it_is_back(browser, spawn, folder):
    (folder / "sub").mkdir()
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/sub/")
    (folder / "sub").rmdir()
    browser.run("look()")
    assert browser.run("$('status').textContent") == "This folder is gone."
    (folder / "sub").mkdir()
    browser.run("look()")
    assert browser.run("$('status').textContent") == ""
    server.stop()
    browser.run("look()")
    assert browser.run("$('status').textContent") == "The server cannot be reached."


@pytest.mark.parametrize("hidden", [False, True], ids=["in sight", "hidden"])
def test_a_page_looks_whether_its_folder_has_changed_while_it_is_in_sight(
    hidden, browser, spawn, folder
):
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    browser.run(
        f"Object.defineProperty(document, 'hidden', {{value: {json.dumps(hidden)}}}); var waits = 0, asked = 0;"
        "{ const real = fetch; window.fetch = (...what) => { asked++; return real(...what); }; }"
        "window.setTimeout = go => { if (++waits < 4) queueMicrotask(go); }; void keepLooking()"
    )
    browser.wait("waits === 4")
    assert browser.run("asked") == (0 if hidden else 4)


def test_choosing_and_dropping_files_and_folders_uploads_them(browser, spawn, folder, tmp_path):
    source = tmp_path / "source"
    (source / "tree" / "deep er").mkdir(parents=True)
    (source / "tree" / "empty" / "inner").mkdir(parents=True)
    files = {
        name: os.urandom(size)
        for name, size in (("one.txt", 10), ("empty", 0), ("ü #1'.bin", 3000000))
    }
    for name, data in files.items():
        (source / name).write_bytes(data)
    (source / "tree" / "deep er" / "leaf").write_bytes(b"leaf")
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    browser.choose("#pick", *(source / name for name in files))
    finished(browser, 3)
    browser.wait("rows().length === 3")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    top = browser.run("list.getBoundingClientRect().top")
    # what is there already, with the same size and time, is not sent again
    browser.drop(source / "tree", source / "one.txt")
    finished(browser, 2)
    browser.wait("rows().length === 4")
    assert (folder / "tree" / "deep er" / "leaf").read_bytes() == b"leaf"
    assert (folder / "tree" / "empty" / "inner").is_dir() and len(os.listdir(folder)) == 4
    assert browser.run("$('sum').textContent") == "2 uploaded (4 bytes), 1 skipped: already there"
    # one panel, which moves nothing; its lines are there on demand
    assert browser.run("list.getBoundingClientRect().top") == top
    assert browser.run("$('jobs').children.length") == 0
    browser.run("$('details').click()")
    assert browser.run("$('jobs').children.length") == 3
    browser.run("$('clear').click()")
    assert browser.run("$('panel').hidden && $('jobs').children.length === 0")


@pytest.mark.parametrize(
    "answer, once", [("replace", False), ("both", False), ("skip", False), ("both", True)]
)
def test_a_name_that_exists_asks_what_to_do(answer, once, browser, spawn, folder, tmp_path):
    for name in "ab":
        (folder / f"{name}.txt").write_bytes(b"old")
        (tmp_path / f"{name}.txt").write_bytes(b"newer")
    (tmp_path / "c.txt").write_bytes(b"c")
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    browser.choose("#pick", *(tmp_path / f"{name}.txt" for name in "abc"))
    for _ in range(1 if once else 2):
        browser.wait(
            "document.querySelector('dialog[open] p')?.textContent.endsWith('.txt exists.')"
        )
        assert "3 bytes" in browser.run("document.querySelector('dialog[open]').textContent")
        browser.run(f"document.querySelector('dialog[open] input').checked = {json.dumps(once)}")
        browser.run(f"document.querySelector('dialog[open] button[value={answer}]').click()")
    browser.wait("!busy()")
    there = {path.name: path.read_bytes() for path in folder.iterdir()}
    new = {
        "replace": {"a.txt": b"newer", "b.txt": b"newer"},
        "both": {"a.txt": b"old", "b.txt": b"old", "a (1).txt": b"newer", "b (1).txt": b"newer"},
        "skip": {"a.txt": b"old", "b.txt": b"old"},
    }
    assert there == {"c.txt": b"c", **new[answer]}
    told = browser.run("$('jobs').textContent")
    assert ("stored as a (1).txt" in told) == (answer == "both")


def test_an_upload_goes_on_after_a_lost_link(browser, spawn, folder, tmp_path, proxy):
    data = os.urandom(3500000)
    (tmp_path / "big").write_bytes(data)
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{proxy(server.port, cut_at=1000000, toward='server').port}/")
    browser.choose("#pick", tmp_path / "big")
    finished(browser, 1)
    assert (folder / "big").read_bytes() == data and len(os.listdir(folder)) == 1
    assert server.stop().count("PATCH") >= 4


def test_a_lost_link_takes_the_rate_away_and_no_fact_of_the_sum_is_broken_into_lines(
    browser, spawn, folder, tmp_path
):
    with open(tmp_path / "big", "wb") as file:
        file.truncate(3 << 30)
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    said = browser.run("samples = [[1000, 0]]; sending(0, 1, 2e6, 4e6, 3000)")
    assert said.split(" ") == [
        fact.replace(" ", "\xa0")
        for fact in ("0 of 1 file,", "2.0 MB of 4.0 MB,", "1.0 MB/s,", "2 s left")
    ]
    browser.choose("#pick", tmp_path / "big")
    browser.wait("$('sum').textContent.includes('B/s')")
    server.kill()
    browser.wait("[...jobs].some(job => job.note.includes('lost'))")
    browser.run("drawn = 0; showPanel()")
    assert "/s" not in browser.run("$('sum').textContent")


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
    finished(browser, 1)
    assert (folder / "big").read_bytes() == (tmp_path / "big").read_bytes()


def test_an_upload_whose_last_answer_is_lost_is_not_sent_again(browser, spawn, folder, tmp_path):
    (tmp_path / "x").write_bytes(b"whole")
    os.utime(tmp_path / "x", (1500000000, 1500000000))
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.run(
        "{ const begin = create; create = async job => { await begin(job); await send(job); job.sent = 0;"
        " throw new Error('the answer is lost'); }; }"
    )
    browser.choose("#pick", tmp_path / "x")
    finished(browser, 1)
    assert os.listdir(folder) == ["x"] and (folder / "x").read_bytes() == b"whole"
    assert server.stop().count("PATCH") == 1 and int((folder / "x").stat().st_mtime) == 1500000000


def test_leaving_asks_while_something_is_on_its_way_and_the_file_goes_on_when_chosen_again(
    browser, spawn, folder, tmp_path, proxy
):
    (tmp_path / "film.mkv").write_bytes(os.urandom(6000000))
    (folder / "other.txt").write_text("other")
    server = spawn("httpserver.py", folder)
    way = proxy(server.port, hold_at=1000000, toward="server")
    browser.open(f"http://127.0.0.1:{way.port}/")
    click(browser, "$('filter')")  # browsers ask only where a person has done something
    browser.choose("#pick", tmp_path / "film.mkv")
    browser.wait("[...jobs].some(job => job.sent > 500000)")
    # a link of the listing opens beside the page
    assert (
        browser.run(
            "{ const link = linkOf(rowNamed('other.txt')); link.addEventListener('click', event => event.preventDefault()); link.click(); link.target }"
        )
        == "_blank"
    )
    browser.answers = [None]
    browser.run("location.reload()")
    until(lambda: browser.run("1") and not browser.answers, "the question")
    assert browser.run("busy()")
    browser.answers = [""]
    again(browser)
    browser.wait("!busy() && document.querySelector('.unfinished')")
    told = browser.run("$('panel').innerText")
    assert "Unfinished uploads" in told and "film.mkv" in told
    assert re.search("of 6.0 MB, choose the file again to go on", told), told
    stored = browser.run("document.querySelector('.unfinished').textContent")
    assert not re.search(r"mkv0 bytes", stored)
    way.go.set()
    browser.choose("#pick", tmp_path / "film.mkv")
    finished(browser, 1)
    assert (folder / "film.mkv").read_bytes() == (tmp_path / "film.mkv").read_bytes()
    assert (
        browser.run(
            "$('jobs').children.length + Object.keys(localStorage).filter(key => key.startsWith('part')).length"
        )
        == 0
    )
    log = server.stop()
    assert len(re.findall('"PUT /film.mkv HTTP/1.1" 201', log)) == 1


def test_an_unfinished_upload_can_be_given_up(browser, spawn, folder, tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 1000)
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.run("send = () => new Promise(() => {})")
    browser.choose("#pick", tmp_path / "x")
    browser.wait("Object.keys(localStorage).some(key => key.startsWith('part'))")
    until(lambda: os.listdir(folder), "the part")
    # as after a crash: nothing was said on leaving
    browser.run("rememberAll(1); kept = () => null; active = 0")
    browser.open(f"http://127.0.0.1:{server.port}/?again")
    browser.wait("document.querySelector('.unfinished button')")
    browser.run("document.querySelector('.unfinished button').click()")
    until(lambda: not os.listdir(folder), "the part to be deleted")
    assert (
        browser.run("$('panel').hidden")
        and browser.run("Object.keys(localStorage).filter(key => key.startsWith('part')).length")
        == 0
    )


def test_an_upload_of_another_tab_is_left_alone(browser, spawn, folder):
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.run(
        "var other = {url: '/y?upload=1', when: Date.now(), name: 'y', size: 5, base: '/'}; kept('localStorage', 'part [\"/y\",5,1]', other)"
    )
    browser.run("showUnfinished()")
    assert browser.run("$('panel').hidden")
    browser.run("kept('localStorage', 'part [\"/y\",5,1]', {...other, when: Date.now() - 6000})")
    browser.run("showUnfinished()")  # nobody sends it, and the server knows none: forgotten
    assert browser.run("$('panel').hidden && localStorage.getItem('part [\"/y\",5,1]') === null")
    assert server.stop().count('"HEAD /y') == 1


def test_cancel_leaves_nothing(browser, spawn, folder, tmp_path, proxy):
    for name in ("big", "bigger", "waits"):
        (tmp_path / name).write_bytes(os.urandom(10000000))
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{proxy(server.port, hold_at=1000000, toward='server').port}/")
    browser.choose("#pick", *(tmp_path / name for name in ("big", "bigger", "waits")))
    browser.wait("[...jobs].some(job => job.sent > 0)")
    said = browser.run("$('sum').textContent")
    assert re.match(r"0.of.3.files, .*.of.30.0.MB", said), said
    browser.run("$('stop').click()")
    finished(browser, 3, "cancelled")
    until(lambda: not os.listdir(folder), "the parts to be deleted")
    assert browser.run("$('sum').textContent") == "3 cancelled"


@pytest.mark.parametrize(
    "change",
    [
        "{ const begin = create; create = async job => { const went = await begin(job); cancel(job); return went; }; }",
        "send = async job => { job.request = new XMLHttpRequest(); setTimeout(() => cancel(job)); throw new Error('the link is lost'); }",
    ],
    ids=["while it begins", "while it waits for the link"],
)
def test_cancel_ends_an_upload_at_any_time(change, browser, spawn, folder, tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 1000)
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.run(change)
    browser.choose("#pick", tmp_path / "x")
    finished(browser, 1, "cancelled")
    server.wait_for('"DELETE /x[?]')
    log = server.stop()
    assert "PATCH" not in log and not os.listdir(folder)


def test_an_upload_that_fails_says_why_to_a_person_and_can_be_tried_again(
    browser, spawn, folder, tmp_path
):
    (folder / "x").mkdir()
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / ("long_name_" * 12)).write_bytes(bytes(2000))
    server = spawn("httpserver.py", folder, "--max-size", "1000")
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.choose("#pick", tmp_path / "x", tmp_path / ("long_name_" * 12))
    finished(browser, 2, "failed")
    notes = [note for _, _, note in states(browser)]
    assert notes == ["More than 1000 bytes are not taken.", "A folder has that name."]
    # failed ones are always shown, and their names break well
    assert browser.look(None, 390, "light")
    width, height = browser.run(
        "{ const box = document.querySelector('.failed span').getBoundingClientRect(); [box.width, box.height] }"
    )
    assert width > 150 and height < 200
    browser.call("Emulation.clearDeviceMetricsOverride")
    (folder / "x").rmdir()
    browser.run(
        "[...document.querySelectorAll('.failed')].find(line => line.textContent.startsWith('x')).querySelector('button').click()"
    )
    finished(browser, 1)
    assert (folder / "x").read_bytes() == b"x"


def test_what_is_pasted_becomes_a_file_and_a_text_can_be_copied(browser, spawn, folder):
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.run(
        "{ const data = new DataTransfer(); data.setData('text/plain', 'grüße'); document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true})); }"
    )
    finished(browser, 1)
    browser.run(
        "{ const data = new DataTransfer(); data.items.add(new File(['PNG'], 'image.png', {type: 'image/png'})); document.body.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data, bubbles: true})); }"
    )
    finished(browser, 1)
    browser.run(
        "pasteText(); document.querySelector('dialog textarea').value = 'by hand'; document.querySelector('dialog button').click()"
    )
    # the dialog closes first, and the upload before this one is still counted as done
    until(lambda: len(list(folder.glob("pasted*"))) == 3, "three files")
    found = {path.read_text(): path.name for path in folder.iterdir()}
    stamp = r"pasted \d{4}-\d\d-\d\d \d\d\.\d\d\.\d\d( \(1\))?"
    assert re.fullmatch(stamp + r"\.txt", found["grüße"]) and re.fullmatch(
        stamp + r"\.png", found["PNG"]
    )
    assert re.fullmatch(stamp + r"\.txt", found["by hand"])
    browser.wait("rows().length === 3")
    browser.wait("document.querySelectorAll('td .copy').length === 2")
    browser.run(
        "var copied; Object.defineProperty(navigator, 'clipboard', {value: {writeText: async text => { copied = text; }}});"
        f"rowNamed({json.dumps(found['grüße'])}).querySelector('.copy').click()"
    )
    assert browser.wait("copied") == "grüße"


def test_new_folder_rename_and_delete_after_a_question(browser, spawn, folder):
    (folder / "old name").write_bytes(b"x")
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.answers = ["a/b <new>", "  ", "old name", "folder", "new ü?", None, ""]
    said = "$('status').textContent"
    browser.run("$('mkdir').click()")  # a slash is no part of a name
    browser.wait(f"{said} === 'That is not the name of a file or folder.'")
    browser.run("$('mkdir').click()")
    assert browser.run(said) == "A name needs more than spaces."
    browser.run("$('mkdir').click()")
    assert browser.run(said) == "A file of that name exists."
    browser.run("$('mkdir').click()")
    browser.wait("rowNamed('folder')")
    browser.run(
        "linkOf(rowNamed('old name')).focus(); document.querySelector('[title=\"Rename old name\"]').click()"
    )
    browser.wait("rowNamed('new ü?')")
    assert sorted(os.listdir(folder)) == ["folder", "new ü?"]
    assert browser.run("document.activeElement.textContent") == "new ü?"
    browser.run("document.querySelector('[title=\"Delete folder\"]').click()")
    assert "everything in it" in browser.dialogs[-1] and (folder / "folder").exists()
    browser.run("document.querySelector('[title=\"Delete folder\"]').click()")
    browser.wait("!rowNamed('folder')")
    assert os.listdir(folder) == ["new ü?"]
    # no text of a server that names a number
    (folder / "hidden later").mkdir()
    browser.answers = ["hidden later"]
    browser.run("$('mkdir').click()")
    browser.wait(f"{said} === 'That name exists.'")


def test_several_rows_are_chosen_and_downloaded_moved_or_deleted(browser, spawn, folder):
    for number in range(1, 8):
        (folder / f"{number} é.txt").write_text(str(number))
    (folder / "sub").mkdir()
    (folder / "sub" / "inner").write_text("inner")
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait("rows().every(row => boxOf(row))")
    box = "rowNamed('{}').querySelector('input').dispatchEvent(new MouseEvent('click', {{bubbles: true, shiftKey: {}}}))"
    browser.run(box.format("2 é.txt", "false") + ";" + box.format("5 é.txt", "true"))
    assert browser.run("chosen().map(nameOf).join()") == "2 é.txt,3 é.txt,4 é.txt,5 é.txt"
    assert browser.run("$('howmany').textContent") == "4 chosen, 4 bytes"
    assert browser.run("$('chosen').hidden") is False and browser.run("$('rename').hidden")
    # what a folder holds is not known
    browser.run("choose([rowNamed('sub')]); showChosen()")
    assert browser.run("$('howmany').textContent") == "1 chosen"
    browser.run("choose(['2', '3', '4', '5'].map(number => rowNamed(number + ' é.txt')))")
    # the archive has these and no others, whole folders too
    browser.run(
        "var asked; HTMLAnchorElement.prototype.click = function () { asked = this.href; }; choose([...chosen(), rowNamed('sub')]); download()"
    )
    data = base64.b64decode(
        browser.run(
            "fetch(asked).then(answer => answer.arrayBuffer()).then(data => btoa(String.fromCharCode(...new Uint8Array(data))))"
        )
    )
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert sorted(archive.namelist()) == [
        *(f"{number} é.txt" for number in range(2, 6)),
        "sub/",
        "sub/inner",
    ]
    browser.run("choose([rowNamed('2 é.txt'), rowNamed('3 é.txt')]); $('move').click()")
    assert (
        browser.run(
            "[...document.querySelectorAll('dialog option')].map(option => option.textContent).join()"
        )
        == "sub"
    )
    browser.run("document.querySelector('dialog button').click()")
    browser.wait("rows().length === 6")
    assert sorted(os.listdir(folder / "sub")) == ["2 é.txt", "3 é.txt", "inner"]
    browser.answers = [""]
    browser.run("choose([rowNamed('sub'), rowNamed('4 é.txt')]); $('delete').click()")
    assert browser.dialogs[-1] == "Delete these 2 and everything in it?"
    browser.wait("rows().length === 4")
    assert sorted(os.listdir(folder)) == [f"{number} é.txt" for number in (1, 5, 6, 7)]
    browser.run("$('filter').value = '5'; filter(true); $('every').click()")
    assert browser.run("chosen().map(nameOf).join()") == "5 é.txt"
    browser.run("clearFilter()")
    # all of it: a download that leaves the page where it is
    browser.run("document.querySelector('footer [name=zip]').click()")
    server.wait_for(r'"GET /\?zip= HTTP/1.1" 200')
    assert browser.run("rows().length") == 4


def test_a_row_of_five_thousand_keeps_the_focus_when_it_is_renamed_and_sorted(
    browser, spawn, folder, full, capsys
):
    if not full:
        pytest.skip("one of the slow matrices: --full runs it")
    for number in range(5000):
        (folder / f"IMG_{number}.jpg").touch()
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    browser.run(
        "var row = rowNamed('IMG_100.jpg'), clock = async what => { const began = performance.now(); await what();"
        " await new Promise(requestAnimationFrame); return Math.round(performance.now() - began); };"
        " window.prompt = () => 'IMG_4000b.jpg'; linkOf(row).focus()"
    )
    renamed = browser.run("clock(() => rename(row))")
    place = browser.run("rows().indexOf(row)")
    ordered = browser.run("clock(() => sortBy(3))"), browser.run("clock(() => sortBy(1))")
    assert place == 4000 and browser.run("document.activeElement === linkOf(row)")
    with capsys.disabled():  # a report: what a browser needs depends on the machine
        print(f"\n5,000 rows: rename {renamed} ms, sort {ordered[0]} and {ordered[1]} ms")


def test_pictures_are_shown_as_a_grid_when_they_are_wanted(browser, spawn, folder):
    dot = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    for name in ("a.png", "b.PNG", "note.txt"):
        (folder / name).write_bytes(dot)
    browser.open(f"http://127.0.0.1:{spawn('httpserver.py', folder).port}/")
    browser.wait("rows().every(row => boxOf(row))")
    assert browser.run("document.images.length") == 0
    browser.run("$('grid').click()")
    browser.wait(
        "document.images.length === 2 && [...document.images].every(image => image.naturalWidth === 1)"
    )
    assert browser.run("getComputedStyle(list).display") == "grid"
    assert browser.run("document.images[0].loading") == "lazy"
    again(browser)
    browser.wait("document.images.length === 2")
    browser.run("$('grid').click()")
    assert browser.run("document.images.length") == 0


def test_an_error_in_a_browser_is_a_page_and_for_a_program_a_line(browser, spawn, folder):
    (folder / "sub").mkdir()
    server = spawn("httpserver.py", folder, "--password", "secret", "--public-read")
    browser.open(f"http://127.0.0.1:{server.port}/sub/%3Cb%3Ex/")
    text = browser.run("document.body.innerText")
    assert "There is no such file or folder." in text and "404" not in text
    links = browser.run("[...document.links].map(link => link.getAttribute('href')).join(' ')")
    assert links == "/sub/ /" and browser.run("getComputedStyle(document.body).maxWidth") != "none"
    heads = {"page": "text/html,*/*;q=0.8", "program": "*/*"}
    heads["ours"] = "application/json, text/html;q=0.9, */*;q=0.1"  # reads a page if it must
    got = {
        who: browser.run(
            f"fetch('/', {{method: 'DELETE', credentials: 'omit', headers: {{Accept: '{accept}'}}}}).then(async answer => [answer.status, answer.headers.get('Content-Type'), await answer.text()])"
        )
        for who, accept in heads.items()
    }
    assert (
        got["program"]
        == got["ours"]
        == [
            401,
            "text/plain; charset=utf-8",
            "401 Unauthorized: a password is asked for\n",
        ]
    )
    status, kind, text = got["page"]
    assert (status, kind) == (401, "text/html; charset=utf-8")
    assert "<h1>A password is asked for.</h1>" in text


def test_in_a_drop_box_the_page_hands_in_and_shows_nothing_but_what_came_from_here(
    browser, spawn, folder, tmp_path
):
    (folder / "Anna-B" / "deep").mkdir(parents=True)
    (folder / "Anna-B" / "essay.txt").write_text("of somebody")
    (tmp_path / "essay.txt").write_text("my essay")
    (tmp_path / "tree" / "empty").mkdir(parents=True)
    server = spawn("httpserver.py", folder, "--drop-box")
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.run("localStorage.clear()")
    again(browser)
    assert "Handed in" not in browser.run("document.body.innerText")
    assert browser.run("document.querySelector('table')") is None
    browser.choose("#pick", tmp_path / "essay.txt")
    browser.wait("$('status').textContent === 'Your name first, please.'")
    browser.run("$('drop').value = 'Anna B'; $('drop').onchange()")
    browser.choose("#pick", tmp_path / "essay.txt")
    finished(browser, 1)
    browser.drop(tmp_path / "tree")
    until((folder / "Anna-B" / "tree" / "empty").is_dir, "the empty folder")
    assert (folder / "Anna-B" / "essay (1).txt").read_text() == "my essay"
    assert (folder / "Anna-B" / "essay.txt").read_text() == "of somebody"
    browser.wait("!busy()")  # else leaving the page asks
    again(browser)
    assert browser.run("$('drop').value") == "Anna B"
    text = browser.run("document.body.innerText")
    assert "Handed in from here" in text and "essay (1).txt, 8 bytes" in text
    assert "deep" not in text
    browser.look(None, 390, "light")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.run("localStorage.clear()")


def test_a_page_without_its_rows_has_at_most_45_kilobytes(browser, spawn, folder):
    server = spawn("httpserver.py", folder)
    browser.open(f"http://127.0.0.1:{server.port}/")
    assert (
        browser.run(
            "fetch('/', {headers: {Accept: 'text/html'}}).then(answer => answer.blob()).then(data => data.size)"
        )
        <= 45000
    )


def test_with_a_password_the_page_changes_what_it_may(browser, spawn, folder, tmp_path):
    server = spawn("httpserver.py", folder, "--password", "gr\u00fcn:x")
    (tmp_path / "new.txt").write_text("new")
    browser.call("Page.navigate", url=f"http://any:gr%C3%BCn%3Ax@127.0.0.1:{server.port}/")
    browser.wait(f"location.port === '{server.port}' && document.readyState === 'complete'")
    browser.choose("#pick", tmp_path / "new.txt")
    browser.wait("rowNamed('new.txt') && boxOf(rowNamed('new.txt'))")
    assert (folder / "new.txt").read_text() == "new"
    browser.run(
        "window.confirm = () => true; rows().find(row => nameOf(row) === 'new.txt').querySelector('.bin').click()"
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
    for width in 360, 390, 1280:
        for scheme in "light", "dark":
            assert browser.look(
                keep and tmp_path.__class__(keep) / f"{width}-{scheme}.png", width, scheme
            ), f"scrolls sideways at {width}"
    # fingers need 44 pixels
    browser.look(None, 390, "light")
    small = browser.run(
        "[...document.querySelectorAll('button, td a, td label, .pick')].filter(each => each.offsetParent && (each.offsetHeight < 43.5 || each.offsetWidth < 43.5)).map(each => each.outerHTML)"
    )
    assert not small, small
    said = browser.run("document.body.innerText")
    assert "drop and paste" not in said and "/ filters" not in said
    assert browser.run(
        "[2, 3].every(cell => rows()[3].cells[cell].offsetHeight > 0) && document.querySelector('th[data-key=\"3\"] button').offsetHeight > 0"
    )
    assert browser.run("getComputedStyle(document.documentElement).colorScheme") == "light dark"
    loaded = browser.run("performance.getEntriesByType('resource').map(entry => entry.name)")
    ours = browser.run("[location.href, location.origin + '/favicon.ico']")  # the browser's wish
    assert set(loaded) <= set(ours), loaded
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
