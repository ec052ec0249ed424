"""Doctor: finds what is wrong with a set-up, why it matters, and how to fix it."""

from cacheworkers.ops.doctor.diagnose import diagnose, log_diagnosis, log_when_workers_start
from cacheworkers.ops.doctor.findings import Finding

__all__ = ["Finding", "diagnose", "log_diagnosis", "log_when_workers_start"]
