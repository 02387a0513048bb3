"""Which commands of the pages are run by a test, and which only parsed, with the reason."""

from __future__ import annotations

RUN = {  # a command, as a regular expression -> the test that runs it, or does what it does
    r"sidray run mine\.yaml|python tables\.py": "tests/docs/test_own_data.py",
    r"sidray (show|search|export) RUN .*|sidray show RUN|sidray key team-search": "tests/docs/test_commands.py",
    r"sidray embed RUN --items items\.parquet --out vectors": "tests/test_run.py",
    r"sidray embed RUN .*--items ITEMS .*": "tests/embedding/test_batch_embed.py",
    r"sidray run docs/examples/hidden_pictures\.yaml": "tests/docs/test_own_task.py",
    r"sidray serve RUN.*": "tests/serving/test_end_to_end.py",
    r"sidray promote (RUN|OTHER|OLD_RUN).*": "tests/serving/test_promote.py",
    r"sidray reindex RUN( --shards 4)?": "tests/serving/test_shards.py",
    r"sidray rollback RUN": "tests/retrieval/test_collection.py",
    r"sidray (submit|status|stop) .*": "tests/test_submit.py",  # with a cluster of its own
    r"curl http://127\.0\.0\.1:8000/v1/.*": "tests/serving/test_pages.py",
    r"make check": "tests/test_check.py",
    r"make help": "tests/docs/test_commands.py",
    r"make docs": "tests/docs/test_references.py",
    r"python jobs/bench/recall\.py": "tests/jobs/test_bench_recall.py",  # small
    r"\{ printf .*": "tests/cluster/test_observability.py",
}

CLUSTER, GPU, TIME, SESSION = "needs a cluster", "needs a GPU", "takes minutes to hours", "is what runs the tests"
NETWORK = "downloads"
NAMED = {  # a command that no test runs -> the reason, and what the section of the page must say of it
    r"kubectl .*|kind .*|helm .*|docker .*": (CLUSTER, r"[Kk]ubernetes|Kubernetes cluster|kubectl|RayCluster|cluster"),
    r"export RAY_AUTH_MODE=.*": (CLUSTER, "cluster"),
    r"RUN=/runs/.*": (CLUSTER, "laptop"),
    r"ray job submit .*|serve deploy .*": (CLUSTER, "cluster"),
    r"make demo": (TIME, r"\d minutes"),
    r"make chaos": (TIME, "for hours"),
    r"make reproduce .*": (TIME, "hours"),
    r"make bench": (TIME, "minutes"),
    r"make (test|format)|pytest .*": (SESSION, "[Tt]est"),
    r"sidray run (smgr|notellm2)-[a-z-]+( .*)?": (TIME, r"hours|CPUs|[Mm]inute"),
    r"sidray run longer\.yaml .*": (TIME, r"[Rr]ecipe"),
    r"sidray run related\.yaml .*": (GPU, "needs GPUs and a bucket"),
    r"python jobs/bench/(paper_shape|gpu_search)\.py.*": (GPU, "needs a GPU"),
    r"python jobs/bench/\w+\.py.*": (TIME, r"run for minutes|Measure"),
    r"pip install .*": (NETWORK, "package"),
}
