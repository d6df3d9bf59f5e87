"""Parses a verb: refuses options that are given twice, and sets its flags for messages."""

from typing import Any

from typer.core import TyperCommand, TyperOption

from .flag_names import use_flags_of


class Command(TyperCommand):
    """Refuses an option that takes one value and is given twice: one value would be silently lost."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses as typer does, and raises a usage error for a second value. `--json --json` is allowed."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in (param for param in self.params if isinstance(param, TyperOption)):
            is_single = not (option.multiple or option.count) and (not option.is_flag or option.secondary_opts)
            if is_single and given.count(option) > 1:
                name = max(option.opts, key=len)
                ctx.fail(f"{name} was given {given.count(option)} times; it takes one value.")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        use_flags_of(self.params)
        return super().invoke(ctx)
