from heed_server.salt import SALT_PREFIX, salted


def test_equal_edits_and_user_salt_give_equal_salts() -> None:
    assert salted("u", "d") == salted("u", "d")
    assert salted("u", "d").startswith(SALT_PREFIX)


def test_user_salt_and_edits_cannot_be_mistaken_for_each_other() -> None:
    assert len({salted("ab", "c"), salted("a", "bc"), salted(None, "abc"), salted("abc", "")}) == 4
