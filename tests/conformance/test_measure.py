"""Loads of a model in processes of their own, as `fusewire model bench` measures them."""

import json
from pathlib import Path

import pytest

from fusewire.testing import Cli
from fusewire_worker_edge.folder import ModelFolderError
from fusewire_worker_edge.measure import measure_loads
