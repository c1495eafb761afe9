"""Keys of callers: which are valid, when a file of them is read again, and what is never shown."""

import hmac
import os
import re
from hashlib import sha256

import pytest
from starlette.datastructures import Headers

from medimage_server.endpoint import keys as keys_module
from medimage_server.endpoint.authorization import authorize
from medimage_server.endpoint.keys import InvalidKey, Keyring, digest, read_keys, read_keys_file
from medimage_server.endpoint.refusal import Refusal

OLD, NEW, OTHER = "old-key-0123456789", "new-key-0123456789", "other-key-0123456789"


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the ward\n{OLD}\n\n  {OTHER}  \n")
    return file


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set forward."""
    clock = type("Clock", (), {"now": 100.0})()
    monkeypatch.setattr(keys_module, "monotonic", lambda: clock.now)
    return clock


def write(file, text, clock):
    file.write_text(text)
    clock.now += 2.0


def test_digest_is_sha256_in_hexadecimal():
    assert digest(OLD) == sha256(OLD.encode()).hexdigest()
    assert read_keys([OLD, NEW], "here") == (sha256(OLD.encode()).hexdigest(), sha256(NEW.encode()).hexdigest())


def test_file_holds_a_key_a_line_beside_comments_and_empty_lines(file):
    assert read_keys_file(file) == (digest(OLD), digest(OTHER))


@pytest.mark.parametrize("key", ["0123456789abcdef", "k" * 512, "!~" * 8])
def test_key_of_16_to_512_visible_characters_is_taken(key):
    assert read_keys([key], "here") == (digest(key),)


@pytest.mark.parametrize(
    "key", ["", "0123456789abcde", "k" * 513, "0123456789 abcdef", "0123456789abcdé", "k" * 16 + "\n"]
)
def test_other_key_is_refused_without_being_quoted(key):
    with pytest.raises(
        InvalidKey, match=r"^key 2 of MEDIMAGE_KEYS: expected 16 to 512 visible ASCII characters"
    ) as error:
        read_keys([OLD, key], "MEDIMAGE_KEYS")
    assert OLD not in str(error.value)
    assert not key or key not in str(error.value)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "holds no key; expected one a line"),
        (b"# nothing\n", "holds no key; expected one a line"),
        (b"\xff\xfe0123456789abcdef\n", "not UTF-8 text"),
        (b"short\n", "key 1 of "),
        (None, "No such file or directory"),
    ],
)
def test_broken_file_is_an_error_at_the_start(tmp_path, content, reason):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidKey, match=reason):
        Keyring((), file)


def test_fixed_keys_and_those_of_the_file_are_valid_at_once(file):
    keyring = Keyring([digest(NEW)], file)
    assert all(keyring.accepts(key) for key in (NEW, OLD, OTHER))
    assert not any(keyring.accepts(key) for key in (NEW + "x", NEW[:-1], "", digest(NEW), "# of the ward"))


def test_only_a_keyring_without_keys_and_file_is_open(file):
    assert Keyring((), None).is_open
    assert not Keyring([digest(NEW)], None).is_open
    assert not Keyring((), file).is_open
    assert not Keyring((), None).accepts(NEW)


def test_changed_file_rotates_the_keys(file, clock):
    keyring = Keyring((), file)
    write(file, f"{OTHER}\n{NEW}\n", clock)
    assert not keyring.accepts(OLD)
    assert keyring.accepts(OTHER)
    assert keyring.accepts(NEW)


def test_file_that_is_put_in_the_place_of_the_old_one_rotates_the_keys(file, clock, tmp_path):
    keyring = Keyring((), file)
    stat = file.stat()
    (tmp_path / "new").write_text(file.read_text().replace(OLD, NEW))  # of the same size
    os.utime(tmp_path / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (tmp_path / "new").replace(file)
    clock.now += 2.0
    assert keyring.accepts(NEW)
    assert not keyring.accepts(OLD)


def test_file_that_grew_within_a_tick_of_the_file_systems_clock_is_read_again(file, clock):
    keyring = Keyring((), file)
    stat = file.stat()
    write(file, f"{file.read_text()}{NEW}\n", clock)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert keyring.accepts(NEW)


def test_file_is_looked_at_once_a_second_at_most(file, clock, monkeypatch):
    keyring = Keyring((), file)
    looks = []
    monkeypatch.setattr(os, "stat", lambda path, stat=os.stat: looks.append(path) or stat(path))
    file.write_text(f"{NEW}\n")
    for _ in range(100):
        assert not keyring.accepts(NEW)
    assert not looks
    clock.now += 1.0
    for _ in range(100):
        assert keyring.accepts(NEW)
    assert looks == [file]


@pytest.mark.parametrize("broken", ["", "# none\n", "short\n"])
def test_file_that_is_broken_later_leaves_the_keys_and_is_looked_at_again(file, clock, broken):
    keyring = Keyring((), file)
    write(file, broken, clock)
    assert keyring.accepts(OLD)
    assert not keyring.accepts("short")
    stat = file.stat()
    write(file, f"{NEW}\n", clock)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # even where the clock has not moved
    assert keyring.accepts(NEW)
    assert not keyring.accepts(OLD)


@pytest.mark.parametrize(
    "break_it, reason",
    [
        (lambda file: file.write_text(""), "keys holds no key; expected one a line"),
        (lambda file: file.write_text(f"{NEW}\nshort"), "key 2 of .*keys: expected 16 to 512 "),
        (lambda file: file.unlink(), "cannot read .*keys: No such file or directory"),
    ],
    ids=["emptied", "broken", "gone"],
)
def test_file_that_is_broken_later_is_told_once_for_each_change(file, clock, caplog, break_it, reason):
    keyring = Keyring((), file)
    for n in range(1, 3):
        break_it(file)
        for _ in range(5):
            clock.now += 2.0
            keyring.accepts(OLD)
        (*_, told) = caplog.messages
        assert len(caplog.messages) == n
        assert re.search(reason, told)
        assert told.endswith("; the keys that it held before stay valid")
        assert not any(text in told for text in (OLD, NEW, OTHER, "short"))
        write(file, f"{OTHER}\n", clock)
        assert keyring.accepts(OTHER)
    assert len(caplog.messages) == 2


def test_half_written_file_is_read_again_when_it_is_whole(file, clock):
    keyring = Keyring((), file)
    write(file, NEW[:10], clock)
    assert keyring.accepts(OLD)
    write(file, f"{NEW}\n", clock)
    assert keyring.accepts(NEW)
    assert not keyring.accepts(OLD)


def test_file_that_is_gone_leaves_the_keys(file, clock):
    keyring = Keyring((), file)
    file.unlink()
    clock.now += 2.0
    assert keyring.accepts(OLD)
    write(file, f"{NEW}\n", clock)
    assert keyring.accepts(NEW)
    assert not keyring.accepts(OLD)


@pytest.mark.parametrize("asked", [OLD, OTHER, NEW, "a" * 40])
def test_every_key_is_compared_in_constant_time_whichever_is_asked(file, monkeypatch, asked):
    keyring = Keyring([digest(NEW)], file)
    compared = []
    monkeypatch.setattr(
        hmac, "compare_digest", lambda a, b, compare=hmac.compare_digest: compared.append((a, b)) or compare(a, b)
    )
    keyring.accepts(asked)
    assert compared == [(digest(asked), digest(known)) for known in (NEW, OLD, OTHER)]
    assert {len(text) for pair in compared for text in pair} == {64}  # its time tells of lengths


def test_keyring_shows_no_key(file):
    keyring = Keyring([digest(NEW)], file)
    assert not any(key in text for key in (OLD, NEW, OTHER) for text in (repr(keyring), str(vars(keyring))))


@pytest.mark.parametrize("header", [f"Bearer {OLD}", f"bearer {OLD}", f"BEARER   {OLD} "])
def test_bearer_of_a_valid_key_may_ask(file, header):
    authorize(Headers({"authorization": header}), Keyring((), file))


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 401),
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer  "}, 401),
        ({"authorization": OLD}, 401),
        ({"authorization": f"Basic {OLD}"}, 401),
        ({"authorization": f"Bearer {NEW}"}, 403),
        ({"authorization": f"Bearer {OLD} {OLD}"}, 403),
        ({"authorization": "Bearer \xff\xfe"}, 403),
        ({"api-key": OLD}, 401),
    ],
)
def test_others_are_refused_without_a_word_of_the_key(file, headers, status):
    with pytest.raises(Refusal) as error:
        authorize(Headers(headers), Keyring((), file))
    assert error.value.status == status
    assert error.value.headers == ({"www-authenticate": "Bearer"} if status == 401 else {})
    assert not any(key in repr(error.value) for key in (OLD, NEW))


def test_anybody_may_ask_where_there_are_no_keys():
    authorize(Headers({}), Keyring((), None))
    authorize(Headers({"authorization": "Bearer anything"}), Keyring((), None))
