"""The command line: `sidray run | submit | show | search | serve | embed | ...`. Thin: it parses, calls sidray, prints.

A user's mistake (UserError) is printed without a traceback and ends with exit code 2.
"""

from __future__ import annotations

from typing import Annotated

import typer

from sidray.command import run_command
from sidray.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
VariantOption = Annotated[str, typer.Option(help="a variant of the run, such as dual-tower")]
ServingOverrides = Annotated[
    list[str] | None, typer.Argument(help="embedder.replicas=2 gateway.keys=URI ...: serve/search.yaml lists the keys")
]
AddressOption = Annotated[
    str,
    typer.Option(help="the cluster's dashboard, http://HOST:8265; default: RAY_API_SERVER_ADDRESS, or this machine"),
]
RunArgument = Annotated[str, typer.Argument(help="a run folder, as `sidray run` prints it")]


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe's name or a YAML path")],
    overrides: Annotated[list[str] | None, typer.Argument(help="a.b=c ...")] = None,
) -> None:
    """Runs a recipe: computes what is not done yet, prints the result table and the run folder."""
    from sidray.run import run_recipe

    finished = run_recipe(recipe, overrides or [])
    typer.echo(f"\n{finished.table}\nrun folder: {finished.folder}   ({finished.seconds:.0f} s)")
    typer.echo(f"report:     {finished.folder}/report/report.md")
    typer.echo(f'next:       sidray search {finished.folder} "query"   or   sidray serve {finished.folder}')


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(help="a shipped recipe's name or a YAML path")],
    overrides: Annotated[list[str] | None, typer.Argument(help="a.b=c ...")] = None,
    address: AddressOption = "",
    env: Annotated[list[str] | None, typer.Option(help="NAME or NAME=VALUE for the job; may be repeated")] = None,
    follow: Annotated[bool, typer.Option(help="show the job's log and end with its exit code")] = False,
) -> None:
    """Runs a recipe as a job of a Ray cluster, which needs no sidray: this package travels with it."""
    from sidray import submit as jobs

    job = jobs.submit(recipe, overrides or [], address, env or [])
    where = f"{job.id} --address {address}" if address else job.id
    typer.echo(f"submitted: sidray status {where}   or   sidray stop {where}")
    if follow:
        raise typer.Exit(jobs.follow(job))


@app.command()
def status(
    job: Annotated[str, typer.Argument(help="a job, as `sidray submit` prints it; default: all of them")] = "",
    address: AddressOption = "",
    follow: Annotated[bool, typer.Option(help="show the job's log and end with its exit code")] = False,
) -> None:
    """Shows how the jobs of a cluster are doing, or the end of the log of one."""
    from sidray import submit as jobs

    if follow and not job:
        raise UserError("--follow shows the log of one job", "name it: sidray status JOB --follow")
    client = jobs.connect(address)
    if follow:
        with jobs.known_job(client, job):
            raise typer.Exit(jobs.follow(jobs.Job(client, job)))
    typer.echo(jobs.log_end(client, job) if job else jobs.table(client))


@app.command()
def stop(
    job: Annotated[str, typer.Argument(help="a job, as `sidray submit` prints it")], address: AddressOption = ""
) -> None:
    """Stops a job: what it has done is kept, and the same command goes on from there."""
    from sidray import submit as jobs

    client = jobs.connect(address)
    with jobs.known_job(client, job):
        typer.echo(f"{job}: stopped" if client.stop_job(job) else f"{job} has ended already")


@app.command()
def show(run: RunArgument) -> None:
    """Shows a run: its steps with times and sizes, and its table."""
    from sidray.show import show as show_run

    typer.echo(show_run(run))


@app.command()
def search(
    run: RunArgument,
    query: Annotated[str, typer.Argument(help="what to search for")] = "",
    image: Annotated[str, typer.Option(help="a picture file as the query, alone or beside the text")] = "",
    partition: Annotated[list[str] | None, typer.Option(help="search only here; may be repeated")] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000)] = 10,
    variant: VariantOption = "",
) -> None:
    """Searches a finished run and prints the hits."""
    from sidray.finished import RunFolder
    from sidray.search import search as search_run

    hits = search_run(RunFolder.open(run, variant), query, image or None, partition or [], k)
    for place, hit in enumerate(hits, 1):
        typer.echo(f"{place:3d}  {hit.score:+.4f}  {hit.item_id:20s}  {hit.partition:18s}  {hit.title}")
    if not hits:
        typer.echo("no item found")


@app.command()
def serve(
    run: RunArgument,
    overrides: ServingOverrides = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    variant: VariantOption = "",
) -> None:
    """Serves a finished run: the search page and the API. Ends with Ctrl-C."""
    from sidray.serving.environment import serve_environment

    serve_environment()
    from sidray.serving.run import serve_run

    serve_run(run, variant, host, port, overrides or [])


@app.command()
def promote(
    run: RunArgument,
    overrides: ServingOverrides = None,
    weight: Annotated[float, typer.Option(min=0, max=1, help="its share of the searches; 0 ends it")] = 1.0,
    shadow: Annotated[bool, typer.Option(help="copies of all searches, whose answers nobody sees")] = False,
    variant: VariantOption = "",
) -> None:
    """Serves another run beside the one that is served on this cluster (RAY_ADDRESS), or in its place."""
    from sidray.serving.promote import promote as promote_run

    shares = promote_run(run, variant, 0.0 if shadow else weight, shadow, overrides or [])
    for name in shares.everybody:
        typer.echo(f"{shares.weights.get(name, 0):6.1%}  {name}{'   (shadow)' if name in shares.shadows else ''}")


@app.command()
def reindex(
    run: RunArgument,
    shards: Annotated[int, typer.Option(min=0, help="cut the index for so many recall deployments; 0: as it is")] = 0,
    variant: VariantOption = "",
) -> None:
    """Folds what was written to a served run into a new generation of its index, as the service does by itself.

    A service keeps the number of shards that it was started with: start it again after a change."""
    from sidray import storage
    from sidray.cluster import on_cluster, ray_cluster
    from sidray.finished import RunFolder
    from sidray.retrieval.collection import Collection

    collection = Collection.of(RunFolder.open(run, variant))
    with ray_cluster():
        generation = on_cluster(Collection.fold, collection, shards)
    where = storage.join(collection.root, generation.index)
    cut = f" in {generation.shards} shards" if generation.shards > 1 else ""
    typer.echo(f"{generation.name}: table version {generation.table_version}{cut}, {where}")


@app.command()
def rollback(
    run: RunArgument,
    generation: Annotated[str, typer.Argument(help="default: the last before this one with as many shards")] = "",
    variant: VariantOption = "",
) -> None:
    """Takes the item table and the index of a served run back to an earlier generation; later writes are gone."""
    from sidray.finished import RunFolder
    from sidray.retrieval.collection import Collection

    collection = Collection.of(RunFolder.open(run, variant))
    kept = collection.rollback(generation)
    typer.echo(f"{kept.name}: table version {kept.table_version} is current again")


@app.command()
def key(name: Annotated[str, typer.Argument(help="of the client")]) -> None:
    """Makes an API key: prints it, and the line for the file that `gateway.keys` names."""
    from sidray.serving.auth import new_key

    made, line = new_key(name)
    typer.echo(f"key, shown this once:   {made}\nline of the keys file:  {line}")


@app.command()
def embed(
    run: RunArgument,
    overrides: Annotated[list[str] | None, typer.Argument(help="embedding.actors=8 embedding.gpus=1 ...")] = None,
    items: Annotated[str, typer.Option(help="URI of a contract item table")] = "",
    out: Annotated[str, typer.Option(help="URI of the folder to write")] = "",
    into_table: Annotated[
        bool, typer.Option("--into-table", help="write to the table that the run's services serve")
    ] = False,
    max_bad_fraction: Annotated[float, typer.Option(min=0, max=1, help="share of bad rows that is tolerated")] = 0.05,
    variant: VariantOption = "",
) -> None:
    """Embeds what is new or changed in a contract item table through a finished run, into a folder or an item table.

    The same command goes on where a killed one was. Columns: item_id, vector, sids, model_key, content_hash."""
    from sidray.batch_embed import batch_embed, embed_into_table, with_pool
    from sidray.cluster import ray_cluster
    from sidray.finished import RunFolder

    if not items or bool(out) == into_table:
        raise UserError(
            "sidray embed reads --items and writes either --out or --into-table", "give --items and one of them"
        )
    chosen = with_pool(RunFolder.open(run, variant), overrides or [])
    with ray_cluster():
        if into_table:
            done = embed_into_table(chosen, items, max_bad_fraction)
        else:
            done = batch_embed(chosen, items, out, max_bad_fraction)
    new, seconds = done["items"] - done["kept"], done["seconds"]
    typer.echo(
        f"{new} items embedded in {seconds:.0f} s ({new / seconds:.1f}/s), {done['kept']} unchanged: {done['out']}"
    )
    for reason, count in done["quarantined"].items():
        typer.echo(f"quarantined: {count} x {reason}")


@app.command()
def export(
    run: RunArgument,
    folder: Annotated[str, typer.Argument(help="a new folder")],
    variant: VariantOption = "",
) -> None:
    """Writes the towers of a run as plain Hugging Face folders."""
    from sidray.export import export as export_run
    from sidray.finished import RunFolder

    typer.echo(f"{folder}: {', '.join(export_run(RunFolder.open(run, variant), folder))}")


def main() -> None:
    run_command(app)


if __name__ == "__main__":
    main()
