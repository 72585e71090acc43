"""Lines of a trace file: headers and records as JSON, and back, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kt_bttackler.records import Header, Record

SCHEMA = 1


def _kind(field: dataclasses.Field[Any]) -> tuple[type, ...]:
    """What a field of the header is in JSON."""
    if field.default_factory is not dataclasses.MISSING:
        return (dict,)
    if isinstance(field.default, bool):
        return (bool,)
    if isinstance(field.default, float):
        return (int, float, str)  # may be "nan"
    if isinstance(field.default, tuple):
        return (list,)
    if field.default is None:
        return (str, int, type(None))
    return (type(field.default),)


_KINDS = {field.name: _kind(field) for field in dataclasses.fields(Header)}


def fields_of(instance: Header | Record) -> dict[str, Any]:
    """What a header or record is written as."""
    return {f.name: getattr(instance, f.name) for f in dataclasses.fields(instance)}


def header_line(header: Header) -> dict[str, Any]:
    """The first line of a trace."""
    return {"schema": SCHEMA, "header": fields_of(header)}


def header_from(content: Mapping[str, Any]) -> Header:
    """The header of a first line.

    Raises:
        ValueError: the schema is another, or a field is of another type.
    """
    schema = content["schema"]
    if schema != SCHEMA:
        raise ValueError(f"schema {schema} is unknown, this version reads {SCHEMA}.")
    known = {field.name for field in dataclasses.fields(Header)}
    values = {k: v for k, v in content["header"].items() if k in known}
    for name, value in values.items():
        if not isinstance(value, _KINDS[name]):
            raise ValueError(f"{name} is {type(value).__name__}.")
        if isinstance(value, list):
            values[name] = tuple(
                tuple(item) if isinstance(item, list) else item for item in value
            )
    for name in (
        "started",
        "planned_learning_rates",
        "averaging_steps",
    ):  # may hold "nan" or "inf"
        if isinstance(values.get(name), tuple):
            values[name] = tuple(float(value) for value in values[name])
        elif name in values:
            values[name] = float(values[name])
    return Header(**values)


def record_from(content: Mapping[str, Any], columns: bool) -> Record:
    """The record of a line; without `columns` only its scalars."""
    return Record(
        epoch=int(content["epoch"]),
        seconds=float(content["seconds"]),
        scalars={k: float(v) for k, v in content["scalars"].items()},
        columns={
            k: tuple(float(v) for v in values)
            for k, values in content["columns"].items()
            if columns
        },
        partial=bool(content["partial"]),
    )
