"""`tokendial serve` and `tokendial keys`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tokendial.commands.elsewhere import On, send_to
from tokendial.commands.shell import Json, Overrides, app, console, failures
from tokendial.experiments import ConfigError

Model = Annotated[
    str | None,
    typer.Option(
        help="What to serve: a model folder, a run (name or `last`), NAME/7 of the registry (pinned), or NAME or "
        "NAME@ALIAS (followed); default the registry's champion, or else the last run."
    ),
]


@app.command(add_help_option=False)
def serve(
    overrides: Overrides = None,
    model: Model = None,
    tracking: Annotated[
        str | None, typer.Option("--tracking-uri", help="MLflow server of the registry; default as `train` has it.")
    ] = None,
    allow_image_host: Annotated[
        list[str] | None, typer.Option(help="Host that images may be fetched from by https; may be given again.")
    ] = None,
    on: On = None,
    json_: Json = False,
    help_: Annotated[bool, typer.Option("--help", help="Show this message, and every setting.")] = False,
) -> None:
    """Serve a model behind an OpenAI-style endpoint whose visual tokens per image are a dial.

    Prints where it listens and what to send, and runs until interrupted. A page to try it out is at the address itself.
    """
    with failures():
        if help_:
            return _print_help()
        from tokendial import api

        if on is not None:
            return _send(
                on, model, overrides or (), {"tracking-uri": tracking, "allow-image-host": allow_image_host}, json_
            )
        out = Console(stderr=True) if json_ else console

        def say(line: str) -> None:
            out.print(line, markup=False, highlight=False, soft_wrap=True)

        with out.status("starting", spinner="dots"):
            endpoint = api.serve(model, overrides or (), tracking_uri=tracking, image_hosts=allow_image_host, say=say)
        if json_:
            print(json.dumps(endpoint.about), flush=True)
        else:
            _print_ready(endpoint.about)
        endpoint.wait()
    return None


def _send(on: str, model: str | None, overrides: Sequence[str], options: Mapping[str, object], json_: bool) -> None:
    from tokendial import jobs

    if model is None:
        raise ConfigError("--on needs --model: a run of the cluster, or a registered model")
    send_to(on, jobs.serving_order(model, overrides, options), json_, show=_print_ready, ready=True)


keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="API keys of endpoints: add, list, revoke.")
app.add_typer(keys, name="keys")


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(help="Name of the key, as it shows in lists and metrics.")],
    rate: Annotated[float | None, typer.Option(help="Requests a second; default unbounded.")] = None,
    min_quality: Annotated[float | None, typer.Option(help="Least expected quality it is served at, 0 to 1.")] = None,
    may_bend: Annotated[bool, typer.Option("--may-bend", help="Fewer visual tokens may be used under load.")] = False,
    priority: Annotated[int, typer.Option(help="Larger is served first.")] = 0,
    json_: Json = False,
) -> None:
    """Make a key and print its secret, once: only a hash of it is kept."""
    with failures():
        from tokendial import api

        secret = api.add_key(name, rate, min_quality, may_bend, priority)
        print(json.dumps({"name": name, "key": secret}) if json_ else secret)


@keys.command("list")
def list_keys(json_: Json = False) -> None:
    """Show keys with what they allow and what was used."""
    with failures():
        from tokendial import api

        found = api.list_keys()
        if json_:
            print(json.dumps([{**key.__dict__, **usage.__dict__} for key, usage in found]))
            return
        table = Table(
            "key", "rate", "min quality", "may bend", "priority", "requests", "images", "visual tokens", "made", "",
            box=None, pad_edge=False,
        )  # fmt: skip
        for key, usage in found:
            made = time.strftime("%Y-%m-%d", time.gmtime(key.created))
            table.add_row(
                key.name, _shown(key.rate_per_s), _shown(key.min_quality), "yes" if key.may_bend else "no",
                str(key.priority), str(usage.requests), str(usage.images), str(usage.visual_tokens), made,
                "revoked" if key.revoked else "",
            )  # fmt: skip
        console.print(table if found else "no keys yet; `tokendial keys add NAME` makes one")


@keys.command("revoke")
def revoke_key(name: Annotated[str, typer.Argument(help="Name of the key.")], json_: Json = False) -> None:
    """Refuse a key from now on, on running endpoints too."""
    with failures():
        from tokendial import api

        api.revoke_key(name)
        print(json.dumps({"revoked": name}) if json_ else f"revoked {name}")


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _print_ready(about: Mapping[str, Any]) -> None:
    url, model, counts = about["url"], about["model"], about["counts"]
    lines = [
        f"{model} ({about['version']}) listens on {url}; interrupt to end it",
        f"counts with a known quality: {', '.join(map(str, counts))}",
        "",
        "from openai import OpenAI",
        f'client = OpenAI(base_url="{url}/v1", api_key="{"KEY" if about["keys"] else "none"}")',
        "client.chat.completions.create(",
        f'    model="{model}@{about["suggested"]}",  # or "{model}", with image_url.detail or visual_tokens',
        '    messages=[{"role": "user", "content": [',
        '        {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}},',
        '        {"type": "text", "text": "…"}]}])',
    ]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_help() -> None:
    from tokendial.serve.options import keys as settings

    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    print(command.get_help(typer.Context(command, info_name="tokendial serve")))
    table = Table("setting", "default", "meaning", box=None, pad_edge=False)
    for key, default, meaning in settings():
        table.add_row(key, default, meaning)
    print()
    Console(width=max(console.width, 140), markup=False).print(table)
