"""Units of measure and counting words that follow a number in a title, by every usual spelling (NFKC, casefolded), and what
one of them is in its base unit: 1500 ml is 1.5 l."""

from fractions import Fraction

_SPELLINGS = {
    "ml": "ml milliliter milliliters millilitre millilitres 毫升",
    "l": "l liter liters litre litres 升",
    "mg": "mg milligram milligrams 毫克",
    "g": "g gram grams 克",
    "kg": "kg kgs kilogram kilograms 千克 公斤",
    "斤": "斤",
    "oz": "oz ounce ounces 盎司",
    "lb": "lb lbs pound pounds 磅",
    "mm": "mm 毫米",
    "cm": "cm 厘米 公分",
    "m": "m meter meters metre metres 米",
    "km": "km 公里 千米",
    "in": 'in inch inches " ′′ 英寸 寸',
    "ft": "ft foot feet 英尺",
    "v": "v volt volts 伏",
    "w": "w watt watts 瓦",
    "kw": "kw 千瓦",
    "a": "amp amps ampere amperes 安 安培",
    "mah": "mah 毫安时",
    "ma": "ma 毫安",
    "ah": "ah 安时",
    "wh": "wh 瓦时",
    "kwh": "kwh 千瓦时",
    "hz": "hz 赫兹",
    "khz": "khz 千赫",
    "mhz": "mhz 兆赫",
    "ghz": "ghz",
    "mb": "mb",
    "gb": "gb",
    "tb": "tb",
    "%": "% percent pct",
    "°": "° degrees 度",
    "°c": "°c 摄氏度",
    "pcs": "pcs pc piece pieces 件 个 只 片 枚",
    "pack": "pack packs 包 袋",
    "box": "box boxes 盒 箱",
    "bottle": "bottle bottles 瓶",
    "pair": "pair pairs 双 对",
    "set": "set sets 套",
    "week": "week weeks 周 星期",
    "second": "sec second seconds 秒 秒钟",
    "year": "year years 年",
    "month": "month months 个月 月",
    "day": "day days 天 日",
    "hour": "h hr hrs hour hours 小时",
    "minute": "min minute minutes 分钟",
    "usd": "usd dollar dollars 美元",
    "yuan": "yuan rmb 元 块",
    "折": "折",
    "码": "码",
}

UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
"""Canonical unit by spelling."""

_BASES = {
    "l": "ml 1000",
    "mg": "g 1/1000",
    "kg": "g 1000",
    "斤": "g 500",
    "oz": "g 28.349523125",
    "lb": "g 453.59237",
    "cm": "mm 10",
    "m": "mm 1000",
    "km": "mm 1000000",
    "in": "mm 25.4",
    "ft": "mm 304.8",
    "kw": "w 1000",
    "ma": "a 1/1000",
    "ah": "mah 1000",
    "kwh": "wh 1000",
    "khz": "hz 1000",
    "mhz": "hz 1000000",
    "ghz": "hz 1000000000",
    "mb": "gb 1/1000",
    "tb": "gb 1000",
    "second": "minute 1/60",
    "hour": "minute 60",
    "day": "minute 1440",
    "week": "minute 10080",
    "year": "month 12",
}

MEASURES = frozenset(["ml", "l", "mg", "g", "kg", "斤", "oz", "lb", "mm", "cm", "m", "km", "in", "ft"])
"""Canonical units of size and weight: their number is a claim even where it is one."""


def in_base(value: Fraction, unit: str) -> tuple[Fraction, str]:
    """(value, base unit) of `value` canonical units. 8折 is 20% off, 85折 is 15% off."""
    if unit == "折":
        return 100 - value * (10 if value < 10 else 1), "% off"
    base, factor = _BASES.get(unit, f"{unit} 1").rsplit(" ", 1)
    return value * Fraction(factor), base
