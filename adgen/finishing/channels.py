"""What a channel, the place where a creative will be shown, decides: its visible label.

A new channel is a new value of the column `channel` of the table pairs; no code lists channels. The value is part of the pair's id,
so each channel has creatives of its own. Its label is an entry of the setting `finish.visible_labels`. Limits (size, format, title
width, gates) hold for a campaign: a channel with limits of its own gets a campaign of its own, with its own `[finish]`.
"""

from adgen.config import FinishSettings


def label_for(channel: str | None, settings: FinishSettings) -> str | None:
    """The visible label that pictures of this channel get, or None."""
    labels = settings.visible_labels
    return labels.get(channel or "", labels.get("*")) or None
