"""The command line: list, show, explain, doctor. Only `explain` and `doctor --load` import torch or a plugin."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import shutil
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from axplain.discovery import Broken, catalog, describe
from axplain.errors import ArgumentError, AxplainError, AxplainWarning, log
from axplain.formula import Formula
from axplain.parameters import find_spec
from axplain.specs import GROUPS, Claim, CostFormula, Evaluation, FromParameter, Parameter, Spec, Use

if TYPE_CHECKING:
    from axplain.cost import Cost
    from axplain.explanation import Explanation

OURS = "axplain"
EXPLAINS = ("method", "noise")
SHOWN_EXAMPLES = 5
