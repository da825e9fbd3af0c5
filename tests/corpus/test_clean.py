from __future__ import annotations

import hashlib

from lmloop.corpus.clean import clean_record, hash_content
from lmloop.records import Conversation, Document, Turn
from lmloop.sections import PrepareConfig

CONFIG = PrepareConfig(sources=("x",), min_characters=3)


def test_a_record_is_normalised_masked_and_named_by_its_content() -> None:
    raw = Document(id="file#1", text="Write  to a@b.com\r\n", raw_bytes=19)
    cleaned = clean_record(raw, config=CONFIG)
    content_hash = hashlib.sha256(b"Write to <email>").hexdigest()
    assert cleaned.record == Document(id=content_hash, text="Write to <email>", raw_bytes=19)
    assert (cleaned.changed, cleaned.emails, cleaned.phones, cleaned.dropped) == (True, 1, 0, None)


def test_personal_data_stays_where_the_recipe_says_so() -> None:
    config = CONFIG.model_copy(update={"mask_personal_data": False})
    cleaned = clean_record(Document("x", "to a@b.com", 10), config=config)
    assert isinstance(cleaned.record, Document)
    assert cleaned.record.text == "to a@b.com"
    assert not cleaned.changed


def test_a_conversation_keeps_its_roles_and_raw_size() -> None:
    turns = (Turn("user", "call 808-782-1557 "), Turn("assistant", "fine"))
    cleaned = clean_record(Conversation("x", turns, raw_bytes=22), config=CONFIG)
    assert isinstance(cleaned.record, Conversation)
    assert cleaned.record.turns == (Turn("user", "call <phone>"), Turn("assistant", "fine"))
    assert cleaned.record.raw_bytes == 22
    assert cleaned.phones == 1


def test_a_dropped_record_has_a_name_but_nothing_to_compare() -> None:
    cleaned = clean_record(Document("x", "ab", 2), config=CONFIG)
    assert cleaned.dropped == "min_characters"
    assert cleaned.record.id == hashlib.sha256(b"ab").hexdigest()
    assert cleaned.shingles == ""


def test_hashes_tell_roles_and_turns_apart() -> None:
    records = [
        Document("", "ab", 1),
        Conversation("", (Turn("user", "ab"),), 1),
        Conversation("", (Turn("assistant", "ab"),), 1),
        Conversation("", (Turn("user", "a"), Turn("assistant", "b")), 1),
        Conversation("", (Turn("user", "a"), Turn("user", "b")), 1),
    ]
    assert len({hash_content(record) for record in records}) == len(records)
