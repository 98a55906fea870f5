"""The words of the demo shop: what its attributes are called, and how items and queries are put into text.

Every product, brand, style and shopper is invented. `None` and empty tuples are fields that a merchant left out.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Department:
    """A shelf of the shop: its place in a product taxonomy, what stands on it, and its materials and sizes."""

    path: str
    nouns: tuple[str, ...]
    materials: tuple[str, ...]
    sizes: tuple[str, ...]


def _department(path: str, nouns: str, materials: str, sizes: str) -> Department:
    return Department(path, *(tuple(text.split(", ")) for text in (nouns, materials, sizes)))


DEPARTMENTS = (
    _department(
        "Furniture > Tables",
        "Side Table, Coffee Table, Console Table, Dining Table, Nightstand, Writing Desk, Nesting Tables, Bar Table",
        "Walnut, Oak, Pine, Marble, Brass, Glass, Rattan, Steel",
        "45 x 45 x 50 cm, 60 x 35 x 70 cm, 90 x 60 x 40 cm, 120 x 60 x 75 cm, 180 x 90 x 75 cm",
    ),
    _department(
        "Furniture > Seating",
        "Armchair, Lounge Chair, Dining Chair, Bench, Ottoman, Bar Stool, Sofa, Loveseat, Rocking Chair, Daybed",
        "Walnut, Oak, Leather, Velvet, Linen, Rattan, Bouclé, Steel",
        "60 x 60 x 80 cm, 75 x 80 x 85 cm, 120 x 45 x 45 cm, 160 x 85 x 80 cm, 220 x 95 x 85 cm",
    ),
    _department(
        "Furniture > Storage",
        "Bookcase, Sideboard, Dresser, Wardrobe, TV Stand, Shoe Rack, Wall Shelf, Storage Trunk, Coat Stand",
        "Walnut, Oak, Pine, Bamboo, Rattan, Steel, Brass",
        "60 x 30 x 30 cm, 80 x 35 x 180 cm, 140 x 45 x 75 cm, 160 x 40 x 55 cm",
    ),
    _department(
        "Home & Garden > Lighting",
        "Table Lamp, Floor Lamp, Pendant Light, Wall Sconce, Chandelier, Desk Lamp, Lantern, String Lights",
        "Brass, Glass, Linen, Paper, Ceramic, Rattan, Steel, Marble",
        "20 cm, 30 cm, 45 cm, 60 cm, 150 cm",
    ),
    _department(
        "Home & Garden > Decor",
        "Vase, Wall Mirror, Picture Frame, Candle Holder, Wall Clock, Planter, Bookends, Wall Hanging, Figurine, Tray",
        "Brass, Glass, Ceramic, Terracotta, Oak, Marble, Macramé, Rattan",
        "10 cm, 15 cm, 20 cm, 30 cm, 60 cm, 80 cm",
    ),
    _department(
        "Home & Garden > Textiles",
        "Throw Pillow, Throw Blanket, Area Rug, Runner Rug, Curtain Panel, Floor Cushion, Table Runner, Doormat",
        "Wool, Linen, Cotton, Velvet, Jute, Bouclé, Silk",
        "45 x 45 cm, 50 x 70 cm, 80 x 200 cm, 130 x 170 cm, 160 x 230 cm, 200 x 300 cm",
    ),
    _department(
        "Home & Garden > Bed & Bath",
        "Duvet Cover, Sheet Set, Quilt, Pillowcase, Bath Towel, Shower Curtain, Bath Mat, Bathrobe, Soap Dispenser",
        "Cotton, Linen, Silk, Bamboo, Ceramic, Wool",
        "Single, Double, Queen, King, 50 x 80 cm, 70 x 140 cm",
    ),
    _department(
        "Home & Garden > Kitchen & Dining",
        "Mug, Teapot, Dinner Plate, Serving Bowl, Cutting Board, Wine Glass, Carafe, Skillet, Apron, Spice Rack, "
        "Salt Cellar, Cake Stand",
        "Ceramic, Stoneware, Glass, Walnut, Bamboo, Cast Iron, Linen, Marble",
        "250 ml, 350 ml, 1 l, Set of 2, Set of 4, Set of 6",
    ),
    _department(
        "Home & Garden > Outdoor",
        "Fire Pit, Hammock, Picnic Blanket, Bird Feeder, Garden Bench, Parasol, Watering Can, Sun Lounger",
        "Teak, Steel, Cotton, Terracotta, Bamboo, Rattan, Cast Iron",
        "40 cm, 75 cm, 150 cm, 200 x 150 cm, 3 m",
    ),
    _department(
        "Apparel & Accessories > Women",
        "Wrap Dress, Slip Dress, Midi Skirt, Blouse, Cardigan, Jumpsuit, Trench Coat, Wide Leg Trousers, Turtleneck, "
        "Kimono, Shirt Dress, Bodysuit",
        "Cotton, Linen, Silk, Wool, Cashmere, Denim, Velvet, Leather",
        "XS, S, M, L, XL, 3X",
    ),
    _department(
        "Apparel & Accessories > Men",
        "Oxford Shirt, Chinos, Blazer, Henley, Overshirt, Polo Shirt, Crewneck Sweater, Bomber Jacket, Hoodie, Peacoat",
        "Cotton, Linen, Wool, Cashmere, Denim, Corduroy, Leather, Fleece",
        "S, M, L, XL, XXL, 32/32, 34/34",
    ),
    _department(
        "Apparel & Accessories > Shoes",
        "Ankle Boots, Sneakers, Loafers, Sandals, Ballet Flats, Block Heels, Slippers, Espadrilles, Clogs",
        "Leather, Suede, Canvas, Velvet, Jute, Wool, Rubber",
        "US 6, US 7, US 8, US 9, US 10, EU 39, EU 42",
    ),
    _department(
        "Apparel & Accessories > Bags",
        "Tote Bag, Crossbody Bag, Backpack, Clutch, Weekender, Belt Bag, Wallet, Bucket Bag, Laptop Sleeve",
        "Leather, Suede, Canvas, Rattan, Velvet, Cotton, Denim",
        "Mini, Small, Medium, Large, 13 inch, 15 inch",
    ),
    _department(
        "Apparel & Accessories > Jewelry",
        "Hoop Earrings, Stud Earrings, Pendant Necklace, Signet Ring, Bangle, Charm Bracelet, Anklet, Brooch, Choker, "
        "Cufflinks",
        "Brass, Sterling Silver, Gold, Pearl, Resin, Glass",
        "Size 6, Size 7, Size 8, 40 cm, 45 cm, One Size",
    ),
    _department(
        "Toys & Stationery",
        "Notebook, Art Print, Desk Organizer, Building Blocks, Plush Bear, Jigsaw Puzzle, Greeting Cards, Play Tent, "
        "Fountain Pen, Wooden Train",
        "Paper, Leather, Cotton, Pine, Brass, Wool, Bamboo",
        "A5, A4, 30 x 40 cm, 50 x 70 cm, One Size",
    ),
)
CATEGORIES = tuple((department, noun) for department in DEPARTMENTS for noun in department.nouns)
MATERIALS = tuple(sorted({material for department in DEPARTMENTS for material in department.materials}))
STYLES = (
    *("Mid-Century", "Scandinavian", "Bohemian", "Industrial", "Farmhouse", "Art Deco", "Coastal", "Minimalist"),
    *("Vintage", "Rustic", "Japandi", "Glam", "Traditional", "Retro", "Cottagecore", "Brutalist"),
)
# What a shopper calls a colour -> what shops call it.
COLORS = {
    "black": ("Black", "Onyx", "Ebony"),
    "white": ("White", "Ivory", "Chalk"),
    "grey": ("Grey", "Charcoal", "Dove"),
    "beige": ("Beige", "Oatmeal", "Sand"),
    "brown": ("Brown", "Chestnut", "Espresso"),
    "green": ("Green", "Sage", "Olive"),
    "dark green": ("Forest", "Bottle Green", "Emerald"),
    "blue": ("Blue", "Denim Blue", "Cobalt"),
    "light blue": ("Sky", "Powder Blue", "Ice Blue"),
    "navy": ("Navy", "Midnight", "Ink"),
    "red": ("Red", "Cherry", "Scarlet"),
    "burgundy": ("Burgundy", "Wine", "Oxblood"),
    "pink": ("Pink", "Blush", "Rose"),
    "orange": ("Orange", "Rust", "Apricot"),
    "yellow": ("Yellow", "Mustard", "Lemon"),
    "purple": ("Purple", "Plum", "Lilac"),
    "gold": ("Gold", "Champagne", "Honey"),
    "turquoise": ("Turquoise", "Teal", "Aqua"),
}
PATTERNS = ("Solid", "Striped", "Floral", "Geometric", "Checked", "Ribbed", "Abstract", "Botanical")
# What a shopper says about a look. No merchant writes it down: items show it in their images only.
MOODS = (
    *("cozy", "airy", "moody", "playful", "elegant", "romantic", "sleek", "earthy", "quirky", "serene", "bold"),
    *("delicate", "chunky", "sculptural", "weathered", "whimsical", "luxe", "sporty", "slouchy", "crisp", "dreamy"),
    *("edgy", "curvy", "boxy"),
)
_SYNONYMS = {
    **{"Sofa": "couch", "Nightstand": "bedside table", "Bookcase": "bookshelf", "Area Rug": "carpet"},
    **{"Throw Pillow": "cushion", "Dresser": "chest of drawers", "Wall Mirror": "looking glass", "Mug": "coffee cup"},
    **{"Cardigan": "knit jacket", "Sneakers": "trainers", "Backpack": "rucksack", "Wallet": "billfold"},
    **{
        "Turtleneck": "roll neck",
        "Hoodie": "hooded sweatshirt",
        "Pendant Light": "hanging lamp",
        "Planter": "plant pot",
    },
    **{"Chinos": "slacks", "Slippers": "house shoes", "Skillet": "frying pan", "Wardrobe": "closet"},
    **{"Duvet Cover": "comforter cover", "TV Stand": "media console", "Crewneck Sweater": "jumper", "Carafe": "jug"},
}

# Brand names: an invented word and, for most, an ending. The word alone tells the brand.
_BRAND_STARTS = (
    "Hal",
    "Mar",
    "Bran",
    "Wes",
    "Thorn",
    "Lind",
    "Cal",
    "Ash",
    "Fair",
    "Win",
    "Ros",
    "Kel",
    "Tor",
    "Elm",
    "Hart",
)
_BRAND_ENDS = ("den", "wick", "ley", "mere", "ford", "vik", "stead", "by", "grove", "croft")
_BRAND_TAILS = (" & Co", " Home", " Studio", " & Daughters", "", " Atelier", " Supply", "")
_BRAND_WORDS = (*(start + end for start in _BRAND_STARTS for end in _BRAND_ENDS), "Ōkawa", "Sólveig", "Étoile", "Añil")
BRANDS = tuple(word + _BRAND_TAILS[number % len(_BRAND_TAILS)] for number, word in enumerate(_BRAND_WORDS))
_MODEL_NAMES = (
    *("Aveline", "Bruno", "Celeste", "Dorian", "Elsa", "Felix", "Greta", "Hugo", "Iris", "Jasper", "Klara", "Luca"),
    *("Maeve", "Nils", "Odette", "Pablo", "Renata", "Silas", "Tilda", "Ulla", "Viggo", "Willa", "Xenia", "York"),
    *("Zelda", "Anouk", "Bastian", "Clio", "Dante", "Esme", "Freya", "Gideon", "Hanna", "Ivo", "Juno", "Kasper"),
)

_BOILERPLATE = (
    *("Free shipping on orders over 50.", "Easy 30-day returns.", "Ships in 2-3 business days.", "Handle with care."),
    *(
        "Designed in house.",
        "Made in small batches.",
        "A customer favorite.",
        "Gift wrapping available.",
        "New season.",
    ),
    *(
        "Color may vary slightly from the picture.",
        "Responsibly sourced.",
        "Wipe clean with a damp cloth.",
        "Back soon.",
    ),
)
_EMOJI = ("✨", "🌿", "💛", "🛋️", "🎁", "🔥", "👗", "☕")

# Japanese, Russian, Arabic, Greek, Hindi, Korean. A merchant of these writes its own language, boilerplate included.
_FOREIGN_NOUNS = {
    "Side Table": (
        "サイドテーブル",
        "приставной столик",
        "طاولة جانبية",
        "βοηθητικό τραπέζι",
        "साइड टेबल",
        "사이드 테이블",
    ),
    "Armchair": ("アームチェア", "кресло", "كرسي بذراعين", "πολυθρόνα", "आरामकुर्सी", "안락의자"),
    "Bookcase": ("本棚", "книжный шкаф", "خزانة كتب", "βιβλιοθήκη", "किताबों की अलमारी", "책장"),
    "Table Lamp": ("テーブルランプ", "настольная лампа", "مصباح طاولة", "επιτραπέζιο φωτιστικό", "टेबल लैंप", "탁상 램프"),
    "Vase": ("花瓶", "ваза", "مزهرية", "βάζο", "फूलदान", "꽃병"),
    "Area Rug": ("ラグ", "ковёр", "سجادة", "χαλί", "कालीन", "러그"),
    "Bath Towel": ("バスタオル", "банное полотенце", "منشفة حمام", "πετσέτα μπάνιου", "तौलिया", "목욕 타월"),
    "Teapot": ("急須", "заварочный чайник", "إبريق شاي", "τσαγιέρα", "चायदानी", "찻주전자"),
    "Blouse": ("ブラウス", "блузка", "بلوزة", "μπλούζα", "ब्लाउज़", "블라우스"),
    "Blazer": ("ブレザー", "пиджак", "سترة", "σακάκι", "ब्लेज़र", "블레이저"),
    "Sandals": ("サンダル", "сандалии", "صندل", "σανδάλια", "सैंडल", "샌들"),
    "Backpack": ("リュックサック", "рюкзак", "حقيبة ظهر", "σακίδιο πλάτης", "पीठ थैला", "배낭"),
    "Pendant Necklace": ("ネックレス", "кулон", "قلادة", "κολιέ", "हार", "목걸이"),
    "Notebook": ("ノート", "блокнот", "دفتر", "σημειωματάριο", "नोटबुक", "공책"),
}
_FOREIGN_BOILERPLATE = (
    "送料無料でお届けします。",
    "Бесплатная доставка.",
    "شحن مجاني",
    "Δωρεάν αποστολή.",
    "मुफ़्त शिपिंग।",
    "무료 배송",
)
FOREIGN_SHARE, EMOJI_SHARE, EMPTY_TEXT_SHARE = 0.3, 0.03, 0.015
"""Of the items whose noun has translations; of all items; of all items."""


@dataclass(frozen=True)
class Attributes:
    """What one item is, or what one shopper wants: indices into the lists of this module."""

    category: int
    style: int
    brand: int
    color: int
    material: int
    mood: int


def _chosen(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode()
    return "-".join("".join(c if c.isalnum() else " " for c in plain).split())


def item_texts(item: Attributes, rng: np.random.Generator) -> dict[str, str | list[str] | None]:
    """Write the twelve text features of one item; most items miss a few.

    The words tell category, style, brand, colour and material, each in more than one place and none for certain;
    they never tell the mood.
    """
    if rng.random() < EMPTY_TEXT_SHARE:
        return {"title": ""}
    department, noun = CATEGORIES[item.category]
    style, brand, material = STYLES[item.style], BRANDS[item.brand], MATERIALS[item.material]
    color = _chosen(tuple(COLORS.values())[item.color], rng)
    has = {name: bool(rng.random() < share) for name, share in _PRESENT.items()}
    name = " ".join(word for word, told in ((color, has["color_word"]), (material, has["material_word"]),
                                            (style, has["style_word"]), (noun, True)) if told)  # fmt: skip
    title = f"{name} – {brand}" if has["brand_word"] else f"{_chosen(_MODEL_NAMES, rng)} {name}"
    description = f"{_chosen(_PRAISE, rng)} {style} {noun.lower()} in {material.lower()}. {_chosen(_BOILERPLATE, rng)}"
    if has["foreign"] and noun in _FOREIGN_NOUNS:
        script = int(rng.integers(len(_FOREIGN_BOILERPLATE)))
        title = f"{_FOREIGN_NOUNS[noun][script]} {material} {style} – {brand}"
        description = _FOREIGN_BOILERPLATE[script]
    if rng.random() < EMOJI_SHARE:
        title = f"{title} {_chosen(_EMOJI, rng)}"
    texts: dict[str, str | list[str] | None] = {
        "title": title,
        "description": description,
        "merchant_domain": f"{_slug(brand)}.example",
        "product_links": [f"https://{_slug(brand)}.example/{_slug(noun)}"],
        "google_product_category": department.path,
        "product_types": [department.path.rpartition(" > ")[2], noun],
        "brand": brand,
        "colors": [color],
        "materials": [material],
        "patterns": [_chosen(PATTERNS, rng)],
        "size": _chosen(department.sizes, rng),
        "size_type": _chosen(_SIZE_TYPES, rng) if department.path.startswith("Apparel") else None,
    }
    return {name: text if has.get(name, True) else None for name, text in texts.items()}


_PRAISE = ("A timeless", "Our best-loved", "A handmade", "The everyday", "A versatile", "A one-of-a-kind", "This")
_SIZE_TYPES = ("Regular", "Petite", "Plus", "Tall", "Unisex")
_PRESENT = {
    **{"color_word": 0.5, "material_word": 0.7, "style_word": 0.6, "brand_word": 0.7, "foreign": FOREIGN_SHARE},
    **{"description": 0.9, "merchant_domain": 0.6, "product_links": 0.4, "google_product_category": 0.8},
    **{"product_types": 0.9, "brand": 0.95, "colors": 0.95, "materials": 0.95, "patterns": 0.5, "size": 0.6},
}


def query_text(wish: Attributes, told: tuple[bool, ...], phrasing: int) -> str:
    """Type what a shopper types.

    Args:
        wish: What the shopper has in mind.
        told: Whether style, brand, colour, material and mood are typed; the category always is.
        phrasing: Any number; picks synonym and order.
    """
    noun = CATEGORIES[wish.category][1]
    noun = _SYNONYMS.get(noun, noun.lower()) if phrasing % 2 else noun.lower()
    style, brand, color, material, mood = (
        word.lower() if is_told else ""
        for word, is_told in zip(
            (STYLES[wish.style], BRANDS[wish.brand], tuple(COLORS)[wish.color], MATERIALS[wish.material],
             MOODS[wish.mood]), told, strict=True)
    )  # fmt: skip
    words = (mood, color, material, style, noun, brand) if phrasing % 3 else (brand, mood, style, noun, material, color)
    return " ".join(word for word in words if word)
