"""kdtrain schema: the JSON schema of a sweep file, with which an editor completes and checks it."""

import argparse


def main(arguments: list[str] | None = None) -> int:
    """Print the schema; return exit code 0."""
    parser = argparse.ArgumentParser(
        prog="kdtrain schema",
        description="Prints the JSON schema of a sweep file. Editors read it if the file's first line is "
        "`# yaml-language-server: $schema=schema.json`.",
    )
    parser.parse_args(arguments)
    from kdtrain.config.schema import schema_text

    print(schema_text(), end="")
    return 0
