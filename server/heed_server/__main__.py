"""`python -m heed_server` is `heed`."""

from heed_server.cli import main

if __name__ == "__main__":
    main()
