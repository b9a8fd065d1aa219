"""Jobs as Ray tasks on one cluster, beside one teacher service.

A task holds a core (or a share of a GPU) and does one job from beginning to end, in a process that Ray uses again for
the next one, so that Python and torch are loaded once. When a worker dies, its job goes on in another one from its
newest checkpoint, once; dying again is a failure.

The service is deployed, or adopted, with the first job that needs it, and ends with the pool's lease on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError

from data.home import VARIABLE, home, teachers_folder
from teacher_server.library import TeacherLibrary
from teacher_server.protocol import TeacherRef
from teacher_server.serve.deployment import TeacherService
from trainer.cluster import check_free, connected
from trainer.config import RunConfig
from trainer.lease import TeacherLease
from trainer.paper.cell import run_job
from trainer.paper.plan import Job, teacher_of
from trainer.paper.teachers import PaperTeachers
from trainer.paper.training import deploy_options
from trainer.paper.work import Report, Workshop


class RayPool:
    """See the top of this module; use `ray_pool`. gpus: of each job."""

    def __init__(self, shop: Workshop, stack: contextlib.ExitStack, *, gpus: float) -> None:
        self._shop = shop
        self._stack = stack
        self._has_service = False
        self._library = TeacherLibrary(teachers_folder())
        options = {
            "num_cpus": shop.scale.threads,
            "num_gpus": gpus,
            "max_retries": 1,
            "max_calls": 0,
            # A cluster's workers have an environment of their own.
            "runtime_env": {"env_vars": {VARIABLE: str(home())}},
        }
        self._run_job: Any = ray.remote(**options)(run_job)
        self._tasks: dict[Any, str] = {}

    def submit(self, job: Job) -> None:
        """As trainer.paper.run.Pool. Raises TeacherError when the service cannot be had."""
        self._have_service_for(job)
        self._tasks[self._run_job.remote(self._shop, job)] = job.id

    def poll(self, timeout_s: float) -> list[Report]:
        """As trainer.paper.run.Pool."""
        ready, _ = ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=timeout_s)
        return [self._report(task) for task in ready]

    def _report(self, task: Any) -> Report:
        job_id = self._tasks.pop(task)
        try:
            report: Report = ray.get(task)
        except RayError as error:  # the process died again: what goes wrong inside run_job, that tells itself
            reason = str(error).strip().splitlines()[0]
            return Report(job_id, "failed", f"its process ended: {reason}"[:500])
        return report

    def _have_service_for(self, job: Job) -> None:
        """Takes the lease that keeps the service between two jobs, once, when the first job wants a teacher."""
        if self._has_service or self._shop.choices.transport != "serve" or job.cell is None:
            return
        key = teacher_of(job.cell)
        known = None if key is None else PaperTeachers(self._shop.folder, self._library, "cpu").read(key)
        if known is None:  # scratch, or a teacher that the job itself is going to add
            return
        self._has_service = True
        root, ref, name = self._library.root, TeacherRef.parse(known.teacher), self._shop.name
        options = deploy_options(self._shop)
        lease = TeacherLease(
            lambda: TeacherService.connect(root), name, ref, lambda service: service.acquire(name, ref, options)
        )
        self._stack.enter_context(lease)
        self._stack.callback(lease.release)
        lease.wait()


@contextlib.contextmanager
def ray_pool(shop: Workshop, workers: int) -> Iterator[RayPool]:
    """A pool for so many jobs at a time, on the cluster that RAY_ADDRESS names or a private one."""
    scale = shop.scale
    served = shop.choices.transport == "serve"
    room = RunConfig(  # what the cluster must have room for: its workers and, where they are served, the teachers
        num_workers=workers,
        batch_size=max(2, workers),
        threads=scale.threads,
        teacher_transport=shop.choices.transport,
    )
    with connected(room), contextlib.ExitStack() as stack:
        on_gpus = scale.device != "cpu" and ray.cluster_resources().get("GPU", 0.0) > 0
        gpus = scale.student_gpus if on_gpus else 0.0
        check_free(
            f"{workers} jobs at a time and the teacher service",
            "--jobs",
            CPU=workers * scale.threads + (room.teacher_cpus if served else 0.0),
            GPU=workers * gpus,
        )
        teacher_gpus = scale.teacher_gpus if on_gpus else 0.0
        yield RayPool(dataclasses.replace(shop, teacher_gpus=teacher_gpus), stack, gpus=gpus)
