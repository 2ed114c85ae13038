"""How titles and pictures are drawn, as settings. No torch here: who only reads a job's settings need not load it."""

from pydantic import Field

from adgen.config import Settings


class SamplingSettings(Settings):
    """How titles and pictures are drawn. The defaults are the published ones (spec section 5)."""

    title_temperature: float = Field(1.0, ge=0)
    """0 takes the most likely token."""
    title_top_k: int = Field(50, ge=0)
    """Draw from the k most likely tokens; 0 from all."""
    max_title_tokens: int = Field(512, gt=0)
    """A title that has not closed by then is empty."""
    picture_temperature: float = Field(1.0, ge=0)
    """0 takes the most likely code."""
    picture_top_k: int = Field(0, ge=0)
    """Draw from the k most likely codes; 0 from all, as published."""
    picture_top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the most likely codes that together have this probability; 1 from all, as published."""
    guidance: float = Field(5.0, ge=0)
    """Weight w of classifier-free guidance: unconditional + w * (conditional - unconditional)."""
    preference_noise: bool = False
    """Gumbel noise in the history masks, as the published model draws it even in inference; keyed by the row's seed."""
    control_strength: float = 1.5
    """Factor on the foreground additions; 1.0 in training, 1.5 in the published inference."""
