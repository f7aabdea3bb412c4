import pytest

from branches.data.dataset import Dataset
from fusion.hierarchy import tables_of
from fusion.tasks import run_here
from orchestrator.fuse.result import fused_system
from orchestrator.plan import make_plan, table_names
from orchestrator.system import load_system
from scoring.table import write_table
from tests.orchestrator.package_case import clip_paths, write_names
from tests.tables import make_table

PAIR = "name: pair\nsubsystems: {one: {a: {seeds: [0, 1]}, b: {branch: {objective: softmax}, detector: knn}}}\n"


class Pair:
    """A system of two configurations, the first with two seeds, and its tables; of its data there are only names."""

    def __init__(self, root):
        write_names(root / "data", clip_paths("fan", labelled=True))
        self.file = root / "pair.yaml"
        self.file.write_text(PAIR)
        self.dataset, self.system = Dataset.read(root / "data"), load_system(str(self.file), "tiny")
        self.plan = make_plan([self.system], self.dataset)
        self.names = tables_of(self.plan.trees["pair"])
        self.tables = self.made()

    def made(self, *like, **options):
        return {name: make_table(*like, seed=i, **options) for i, name in enumerate(self.names)}

    def fused(self, out, tables=None, baseline=None, plan=None):
        """The result in a run's folder, with a table as the baseline or without one."""
        folder, named = out / "systems" / "pair", baseline and (self.plan.baseline, baseline)
        return fused_system(
            self.system, self.dataset, plan or self.plan, tables or self.tables, folder, run_here, named
        )

    def write(self, path_of, **known):
        """The tables as branches leave them."""
        for branch in self.plan.branches[:-1]:  # the last one is the baseline
            (name,), (scoring,), spec = table_names(branch), branch.scorings, branch.spec.model_dump_json()
            known |= {"config_id": branch.config_id, "spec": spec, "detector": scoring.detector.model_dump_json()}
            path_of(name).parent.mkdir(parents=True, exist_ok=True)
            write_table(self.tables[name].replace_schema_metadata(known), path_of(name))


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("pair"))
