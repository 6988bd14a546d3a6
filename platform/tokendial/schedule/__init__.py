"""Token schedules: the law that says which token count(s) a training step uses, a pure function of (seed, step)."""

from tokendial.schedule.config import DistilConfig, Mix, Phase, ScheduleConfig
from tokendial.schedule.draw import Group, Plan, TokenSchedule
from tokendial.schedule.presets import PRESETS, preset

__all__ = ["PRESETS", "DistilConfig", "Group", "Mix", "Phase", "Plan", "ScheduleConfig", "TokenSchedule", "preset"]
