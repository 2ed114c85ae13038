"""The published two-pass flow (docs/design.md 6.9), written plainly: no cache, no batch, no shared layout code. Slow, and right.

Pass 1 writes the title. Its text is cut at the closing tag, put into the prompt as a string, and the whole prompt is
tokenised anew. Pass 2 paints. Every step recomputes the whole sequence.
"""

import math

import torch

from adgen.generation.generate import Request
from adgen.generation.prompt import Prompter
from adgen.generation.sampling import PICTURE, TITLE, gumbel_noise, sample
from adgen.generation.sampling_settings import SamplingSettings
from adgen.model.uniadgen import UniAdGen


@torch.inference_mode()
def two_pass(model: UniAdGen, prompter: Prompter, request: Request, sampling: SamplingSettings) -> tuple[str, torch.Tensor]:
    """(title, codes) of one request. The request's texts must spell no special token: here they are not told apart."""
    seed = torch.tensor([request.seed])
    answer = "<prompt>"
    ids, history = prompt_ids(model, prompter, request, answer), embedded_history(model, prompter, request)
    new: list[int] = []
    for step in range(sampling.max_title_tokens):
        embeds = prompt_embeddings(model, prompter, ids, history)
        if new:
            embeds = torch.cat((embeds, model.decoder.embed_tokens(torch.tensor(new))))
        logits = model.decoder.lm_head(model.decoder(embeds[None])[:, -1])
        noise = gumbel_noise(seed, step, TITLE, logits.shape[-1])
        new.append(int(sample(logits, sampling.title_temperature, noise, sampling.title_top_k)))
        if new[-1] == prompter.eos_id:
            break
    text = answer + prompter._full.decode(new, skip_special_tokens=False)
    answer = text[: text.index("</prompt>") + len("</prompt>")] if "</prompt>" in text else "<prompt></prompt>"

    ids = [*prompt_ids(model, prompter, request, answer), prompter.eos_id, prompter._id("begin_of_image")]
    conditional = prompt_embeddings(model, prompter, ids, history)
    if model.preference.style_encoder is not None and len(request.history_codes):
        conditional[-1] += style_embedding(model, request)
    template = prompter.template
    negative = [*encode(prompter, template.chat.format(user=template.negative, answer="")), prompter._id("begin_of_image")]
    unconditional = model.decoder.embed_tokens(torch.tensor(negative))
    additions = None
    if request.condition is not None:
        additions = model.foreground(request.condition[None]) * sampling.control_strength
    codes: list[int] = []
    for step in range(model.config.image.tokens_per_picture):
        painted = model.image_embedding(torch.tensor(codes, dtype=torch.int64))
        some = None if additions is None or not codes else additions[:, :, : len(codes)]
        c, u = (
            model.image_head(model.decoder(torch.cat((prompt, painted))[None], additions=some)[:, -1])
            for prompt in (conditional, unconditional)
        )
        noise = gumbel_noise(seed, step, PICTURE, c.shape[-1])
        codes.append(int(sample(u + sampling.guidance * (c - u), sampling.picture_temperature, noise)))
    return answer.removeprefix("<prompt>").removesuffix("</prompt>"), torch.tensor(codes)


def encode(prompter: Prompter, text: str) -> list[int]:
    return prompter._full.encode(text.strip(), add_special_tokens=True).ids


def prompt_ids(model: UniAdGen, prompter: Prompter, request: Request, answer: str) -> list[int]:
    names, template = prompter.template.tokens, prompter.template
    user = template.user.format(
        selling_points=template.selling_points_joined_by.join(request.selling_points),
        history_titles=names.title_placeholder * len(request.history_titles),
        product_title=request.product_title,
        history_images=names.image_placeholder * len(request.history_codes),
    )
    return encode(prompter, template.chat.format(user=user, answer=" " + answer))


def embedded_history(model: UniAdGen, prompter: Prompter, request: Request) -> tuple[list, list]:
    """The fused rows, an item at a time: pictures, titles."""
    num_pictures, num_titles = len(request.history_codes), len(request.history_titles)
    titles = torch.tensor([prompter.history_title_ids(t) for t in request.history_titles], dtype=torch.int64)
    titles = titles.reshape(1, num_titles, model.config.preference.tokens_per_title)
    codes = request.history_codes.reshape(1, num_pictures, model.config.image.tokens_per_history_picture)
    images, texts = model.embed_history(codes, titles)[:2]
    return list(images[0].chunk(num_pictures)) if num_pictures else [], list(texts[0].chunk(num_titles)) if num_titles else []


def style_embedding(model: UniAdGen, request: Request) -> torch.Tensor:
    """What the clicked pictures say, read one by one; (D,)."""
    readings = [model.preference.style_encoder(model.image_embedding(codes[None, None]))[0, 0] for codes in request.history_codes]
    directions = [torch.nn.functional.normalize(reading, dim=0) for reading in readings]
    agreement, shares = model.config.preference.agreement_weighting, [1 / len(readings)] * len(readings)
    for _ in range(2 if agreement else 0):
        centre = sum(share * direction for share, direction in zip(shares, directions, strict=True))
        centre = torch.nn.functional.normalize(centre, dim=0)
        votes = [math.exp(agreement * float(direction @ centre)) for direction in directions]
        shares = [vote / sum(votes) for vote in votes]
    return model.config.preference.style_gain * sum(share * reading for share, reading in zip(shares, readings, strict=True))


def prompt_embeddings(model: UniAdGen, prompter: Prompter, ids: list[int], history: tuple[list, list]) -> torch.Tensor:
    """Placeholder ids become begin marker, the next item's rows, end marker; every other id its embedding. (T, D)"""
    pictures, titles = (iter(items) for items in history)
    embed = lambda *i: model.decoder.embed_tokens(torch.tensor(i))  # noqa: E731
    parts = []
    for token in ids:
        if token == prompter._id("image_placeholder"):
            parts += [embed(prompter._id("begin_of_image")), next(pictures), embed(prompter._id("end_of_image"))]
        elif token == prompter._id("title_placeholder"):
            begin, end = prompter._id("begin_of_history_title"), prompter._id("end_of_history_title")
            parts += [embed(begin), next(titles), embed(end)]
        else:
            parts.append(embed(token))
    return torch.cat(parts)
