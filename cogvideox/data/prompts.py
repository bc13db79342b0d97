"""Prompts as people give them: text, for an image-to-video model `text@@image`; from a file one a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogvideox.errors import UserError

IMAGE_MARK = "@@"
COMMENT_MARK = "#"


@dataclass(frozen=True)
class Prompt:
    """What to draw; `image` is the file that the clip starts with, `where` the place to name in an error."""

    text: str
    image: Path | None = None
    where: str = ""


def parse_prompt(line: str, where: str = "", folder: Path | None = None) -> Prompt:
    """`text` or `text@@image`. An image's path counts from the working directory, or where there is none, `folder`."""
    text, mark, name = line.partition(IMAGE_MARK)
    if not mark:
        return Prompt(text.strip(), None, where)
    image = Path(name.strip())
    if folder is not None and not image.exists() and (folder / image).exists():
        image = folder / image
    return Prompt(text.strip(), image, where)


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a UTF-8 text file, one a line; blank lines and those that begin with # are passed over.

    Raises UserError: no such file, not text, or no prompt in it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(
            f"there is no file {path}" + ("" if path.is_absolute() else f" (seen from {Path.cwd()})")
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8 text ({error})") from error
    kept = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    prompts = [
        parse_prompt(line, f"{path}:{number}", path.parent)
        for number, line in kept
        if line and not line.startswith(COMMENT_MARK)
    ]
    if not prompts:
        raise UserError(f"{path} holds no prompt: write one a line")
    return prompts


def fault_of_prompt(prompt: Prompt, takes_image: bool) -> str | None:
    """Why a model that does or does not take an image cannot draw this prompt; None where it can."""
    if prompt.image is not None and not takes_image:
        return (
            f"an image is given ({prompt.image}), but the model draws from text alone (model.noised_image_input is not "
            f"true): leave out `{IMAGE_MARK}{prompt.image}`, or use an image-to-video model"
        )
    if prompt.image is None and takes_image:
        return f"the model starts from an image: write `{prompt.text or 'text'}{IMAGE_MARK}image.png`"
    if prompt.image is not None and not prompt.image.is_file():
        return f"there is no image {prompt.image}"
    if not prompt.text and prompt.image is None:
        return "the prompt is empty: say what to draw"
    return None
