"""Every method of this distribution keeps what its spec claims, and the contracts of all methods."""

from __future__ import annotations

from axplain.conformance import conformance_suite

TestOurs = conformance_suite("axplain")
