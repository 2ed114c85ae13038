"""Histories whose noise is known exactly: for measuring how many stray clicks a model bears."""

from collections.abc import Collection, Mapping

from adgen.errors import InputError, SettingsError
from adgen.records import unit_interval

NUM_CLICKS = 20


def stray_clicks(share: float) -> int:
    """How many of NUM_CLICKS clicks are the share `share`. SettingsError where that is no whole number."""
    count = share * NUM_CLICKS
    if abs(count - round(count)) > 1e-9 or not 0 <= share <= 1:
        raise SettingsError(f"noise: {share}: of {NUM_CLICKS} clicks that is no whole number; give a multiple of {1 / NUM_CLICKS}")
    return round(count)


def controlled_clicks(
    user: str, favourites: Collection[str], styles: Mapping[str, str], share: float, avoid: Collection[str] = ()
) -> list[str]:
    """NUM_CLICKS different products: exactly `share` of them in styles that are none of `favourites`, the rest in those.

    styles: of every product of the shop; avoid: products that are not clicked. Which ones is a function of the user alone,
    so a larger share replaces clicks and moves no other. InputError where the shop has too few products.
    """
    strays = stray_clicks(share)
    ranked = sorted(styles.keys() - set(avoid), key=lambda product: (unit_interval("controlled", user, product), product))
    liked = [product for product in ranked if styles[product] in favourites][: NUM_CLICKS - strays]
    others = [product for product in ranked if styles[product] not in favourites][:strays]
    if len(liked) + len(others) < NUM_CLICKS:
        raise InputError(
            f"noise {share}: the shop has {len(liked)} products in a user's styles and {len(others)} in others, "
            f"{NUM_CLICKS - strays} and {strays} are needed: draw a larger shop"
        )
    return liked + others
