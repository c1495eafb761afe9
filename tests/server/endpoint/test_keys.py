"""Keys of callers: which are valid, that the file as it stands is what counts, and what is never shown."""

import hmac
import os
from hashlib import sha256

import pytest
from starlette.datastructures import Headers

from medimage_server.endpoint import keys as keys_module
from medimage_server.endpoint.keys import (
    InvalidKey,
    Keyring,
    authorize,
    check_keys_file,
    digest,
    read_keys,
    read_keys_file,
)
from medimage_server.endpoint.responses import Refusal

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
    assert read_keys(f" {OLD}\r\n{NEW}\t", "here") == (
        sha256(OLD.encode()).hexdigest(),
        sha256(NEW.encode()).hexdigest(),
    )


def test_file_holds_a_key_a_line_beside_comments_and_empty_lines(file):
    assert read_keys_file(file) == ((digest(OLD), digest(OTHER)), None)
    file.write_bytes(b"# Pr\xfcfung\r\n" + f"{OLD}\r\n\t{OTHER}".encode())  # of another system
    assert read_keys_file(file) == ((digest(OLD), digest(OTHER)), None)


# white space of Python, and none of a header or a file of lines
EXOTIC = ["\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x1f", "\x85", "\xa0", "\u2003", "\u2028", "\u2029"]


@pytest.mark.parametrize("space", EXOTIC)
def test_two_different_keys_never_become_equal_by_their_white_space(file, space):
    for key in (OLD + space, space + OLD, OLD + space + OTHER):
        file.write_text(f"{NEW}\n{key}\n", encoding="utf-8")
        with pytest.raises(InvalidKey, match=r"^line 2 of .*keys: expected 16 to 512"):
            check_keys_file(file)
        with pytest.raises(InvalidKey, match=r"^key 2 of MEDIMAGE_KEYS: expected 16 to 512"):
            read_keys(f"{NEW} {key}", "MEDIMAGE_KEYS")
        keyring = Keyring((), file)
        assert [keyring.accepts(asked) for asked in (NEW, OLD, OTHER, key)] == [True, False, False, False]
    if ord(space) < 256:  # as a header can bring it
        file.write_text(f"{OLD}\n")
        for key in (OLD + space, space + OLD):
            with pytest.raises(Refusal, match="the key is not valid here"):
                authorize(Headers({"authorization": f"Bearer {key}"}), Keyring((), file))


def test_carriage_return_alone_ends_no_line(file):
    file.write_bytes(f"{OLD}\r{OTHER}\n{NEW}\r\n".encode())
    digests, fault = read_keys_file(file)
    assert (digests, fault) == ((digest(NEW),), f"line 1 of {file}: {keys_module.EXPECTED}")


@pytest.mark.parametrize("key", ["0123456789abcdef", "k" * 512, "!~" * 8])
def test_key_of_16_to_512_visible_characters_is_taken(key):
    assert read_keys(key, "here") == (digest(key),)


@pytest.mark.parametrize("key", ["0123456789abcde", "k" * 513, "0123456789 abcdef", "0123456789abcdé", "k" * 16 + "\0"])
def test_other_key_is_refused_without_being_quoted(key):
    with pytest.raises(
        InvalidKey, match=r"^key 2 of MEDIMAGE_KEYS: expected 16 to 512 visible ASCII characters"
    ) as error:
        read_keys(f"{OLD} {key}", "MEDIMAGE_KEYS")
    assert OLD not in str(error.value)
    assert key not in str(error.value)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "holds no key; expected one a line"),
        (b"# nothing\n", "holds no key; expected one a line"),
        (b"\xff\xfe0123456789abcdef\n", "line 1 of "),
        (f"\n{OLD}\nshort\n".encode(), "^line 3 of .*keys: expected 16 to 512 "),
        (None, "No such file or directory"),
    ],
)
def test_broken_file_is_an_error_at_the_start_of_the_command(tmp_path, content, reason):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidKey, match=reason) as error:
        check_keys_file(file)
    assert OLD not in str(error.value)


@pytest.mark.parametrize("content", [None, "", "# none\n", "short\n"])
def test_worker_starts_with_a_broken_file_and_admits_nobody_by_it(file, caplog, content):
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    keyring = Keyring([digest(NEW)], file)
    assert len(caplog.messages) == 1
    assert not keyring.is_open
    assert [keyring.accepts(key) for key in (NEW, OLD, "short", "")] == [True, False, False, False]
    file.write_text(f"{OLD}\n")
    assert keyring.accepts(OLD)
    assert len(caplog.messages) == 1


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


def test_change_that_leaves_size_and_times_is_seen(file, clock):
    keyring = Keyring((), file)
    stat = file.stat()
    write(file, file.read_text().replace(OLD, NEW), clock)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert keyring.accepts(NEW)
    assert not keyring.accepts(OLD)


@pytest.fixture
def looks(monkeypatch):
    """The files that were read."""
    looks = []
    read = keys_module.read_keys_file
    monkeypatch.setattr(keys_module, "read_keys_file", lambda path: looks.append(path) or read(path))
    return looks


def test_file_in_order_is_read_once_a_second_at_most(file, clock, looks):
    keyring = Keyring((), file)
    looks.clear()
    file.write_text(f"{NEW}\n")
    for _ in range(100):
        assert not keyring.accepts(NEW)
    assert not looks
    clock.now += 1.0
    for _ in range(100):
        assert keyring.accepts(NEW)
    assert looks == [file]


def test_keys_without_a_file_need_none(clock, looks):
    keyring = Keyring([digest(NEW)], None)
    clock.now += 2.0
    assert keyring.accepts(NEW)
    keyring.read_again()
    assert not looks


def test_file_is_read_at_once_when_told(file, clock, caplog):
    keyring = Keyring((), file)
    file.write_text(f"{NEW}\n")
    keyring.read_again()
    assert [keyring.accepts(key) for key in (OLD, NEW)] == [False, True]
    file.unlink()
    keyring.read_again()
    assert not keyring.accepts(NEW)
    assert len(caplog.messages) == 1


BROKEN = {
    "emptied": (lambda file: file.write_text(""), "{file} holds no key; expected one a line"),
    "comments": (lambda file: file.write_text(f"# {OLD}\n"), "{file} holds no key; expected one a line"),
    "gone": (lambda file: file.unlink(), "cannot read {file}: No such file or directory"),
    "no-key": (lambda file: file.write_text("short\n"), "line 1 of {file}: " + keys_module.EXPECTED),
}
broken = pytest.mark.parametrize("break_it, fault", BROKEN.values(), ids=BROKEN)


@broken
def test_keys_of_a_file_that_is_emptied_or_gone_are_revoked(file, clock, break_it, fault):
    keyring = Keyring([digest(NEW)], file)
    break_it(file)
    clock.now += 2.0
    assert [keyring.accepts(key) for key in (OLD, OTHER, NEW, "short")] == [False, False, True, False]


@broken
def test_fault_of_the_file_is_told_once_until_it_is_mended(file, clock, caplog, break_it, fault):
    keyring = Keyring((), file)
    for n in range(1, 3):
        break_it(file)
        for _ in range(5):
            clock.now += 2.0
            keyring.accepts(OLD)
            keyring.read_again()
        assert caplog.messages == [fault.format(file=file) + "; nobody is admitted by it"] * n
        write(file, f"{OTHER}\n", clock)
        assert keyring.accepts(OTHER)
    assert len(caplog.messages) == 2


@broken
def test_broken_file_is_looked_at_for_every_request(file, clock, break_it, fault):
    """An editor that replaces it leaves no longer gap than the moment itself."""
    keyring = Keyring((), file)
    break_it(file)
    clock.now += 2.0
    assert not keyring.accepts(OLD)
    file.write_text(f"{OLD}\n")
    assert keyring.accepts(OLD)  # though the clock stands still


def test_line_that_is_no_key_is_skipped_and_named_by_its_number_once(file, clock, caplog):
    keyring = Keyring((), file)
    for _ in range(3):
        write(file, f"# of the ward\n{OLD} x\n{NEW}\nshort\n", clock)
        assert [keyring.accepts(key) for key in (OLD, NEW, "short", f"{OLD} x")] == [False, True, False, False]
    told = f"lines 2, 4 of {file}: {keys_module.EXPECTED}; the other lines count"
    assert caplog.messages == [told]
    write(file, f"{NEW}\nshort\n", clock)
    assert keyring.accepts(NEW)
    assert caplog.messages == [told, f"line 2 of {file}: {keys_module.EXPECTED}; the other lines count"]


def test_many_lines_that_are_no_keys_are_one_short_message(file, caplog):
    file.write_text("short\n" * 1000 + NEW)
    assert Keyring((), file).accepts(NEW)
    assert caplog.messages[0].startswith("lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 990 more of ")


def test_half_written_file_counts_as_far_as_it_goes_and_is_read_again_when_it_is_whole(file, clock):
    keyring = Keyring((), file)
    write(file, f"{OTHER}\n{NEW[:10]}", clock)
    assert [keyring.accepts(key) for key in (OLD, OTHER, NEW)] == [False, True, False]
    file.write_text(f"{OTHER}\n{NEW}\n")
    clock.now += 2 * keys_module.LOOK_AT_FAULTY_S
    assert keyring.accepts(NEW)


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


@pytest.mark.parametrize("second", [f"Bearer {OLD}", f"Bearer {NEW}", ""])
def test_two_headers_are_refused_whatever_they_hold(file, second):
    headers = Headers(raw=[(b"authorization", value.encode()) for value in (f"Bearer {OLD}", second)])
    for keyring in (Keyring((), file), Keyring((), None)):
        with pytest.raises(Refusal, match="authorization is given 2 times; expected once") as error:
            authorize(headers, keyring)
        assert error.value.status == 400


def test_anybody_may_ask_where_there_are_no_keys():
    authorize(Headers({}), Keyring((), None))
    authorize(Headers({"authorization": "Bearer anything"}), Keyring((), None))


def test_file_with_keys_and_a_line_that_is_none_is_not_read_for_each_request(file, clock, monkeypatch):
    """It may be long, and anybody can ask."""
    keyring = Keyring((), file)
    write(file, f"{NEW}\nshort\n", clock)
    assert keyring.accepts(NEW)
    reads = []
    monkeypatch.setattr(keys_module, "read_keys_file", lambda path: reads.append(path) or ((), None))
    for _ in range(10):
        keyring.accepts(OTHER)
    assert reads == []
    clock.now += 2 * keys_module.LOOK_AT_FAULTY_S
    keyring.accepts(OTHER)
    assert reads == [file]
