from support.browser import browser, visit  # noqa: F401
