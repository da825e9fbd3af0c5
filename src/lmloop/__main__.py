"""`python -m lmloop` is `lmloop`."""

from lmloop.cli import main

main()
