"""Writes what clients need to know of the methods, from their JSON Schemas; `make client` runs it.

python scripts/make_clients.py
"""

from from_schemas import python_client, typescript

from heed_interventions import METHODS, method_schema


def main() -> None:
    """Write the files for the methods of the repository."""
    schemas = [method_schema(method) for method in METHODS.values()]
    for client in (python_client, typescript):
        client.TARGET.write_text(client.render(schemas))


if __name__ == "__main__":
    main()
