"""The words of the suite. Every list is disjoint from the others, so no key occurs in filler by accident."""
# ruff: noqa: SIM905  (word lists are easier to read and to edit as text)

# Keys: single nouns, none contained in another (answers are found by substring).
KEYS = tuple(
    """
    abacus acorn airport album alcove almond alpaca amber anchovy angel ankle antler apple apricot apron arcade
    armor atlas attic avocado badger bagel balcony balloon bamboo banana bandage banjo banner barley barn barrel
    basin basket beacon bead beagle bean bear beaver bed beech beetle bell belt bench bicycle bird biscuit
    bishop bison blanket blender blossom bolt bonnet boot bottle boulder bouquet bowl bracelet branch brick
    broom brush bubble bucket buckle buffalo bugle bus butter button cabbage cabinet cable cactus cage camel
    camera camp canal canary candle candy cannon canyon cape caravan cardigan caribou carpet carriage cashew
    castle catfish cathedral cave celery cello cereal chain chair chalk chapel cheetah cherry chess chestnut
    chicken chimney chisel church cider cigar circus citrus clam clarinet clay cliff clover coach coal cobra
    cocoa coconut coffee coin comb compass cone copper coral cork cottage cotton cougar cow coyote crab cradle
    crane crate crayon cricket crocus crow crystal cucumber curtain cushion cymbal cypress daffodil dagger
    dahlia daisy dam date deer denim desert diamond dice dinghy dolphin donkey donut door dove dragon drawer
    dress drum duck dune earring elbow elephant elevator elk emerald engine envelope eraser falcon fan faucet
    feather fence fern ferret ferry fiddle fig finch finger fir flag flamingo flannel flask flea flint flute fly
    foam folder forest fork fountain fox freezer frog fungus funnel galaxy gallery garage garlic garnet gate
    gazelle gecko geyser ginger giraffe glacier glass glider globe glove goat goblet goggles gong goose gopher
    gorilla grape grass gravel grill guava guitar gull hammer hammock hamster handle harbor hare harness harp
    hatchet hawk hazel hedge helmet hemlock hen herb heron herring hill hinge hippo honey hood hook hornet horse
    hotel hound husky hyena ibex iceberg icicle igloo iguana ink iris iron island ivory ivy jacket jade jaguar
    jam jar jasmine javelin jeep jelly jersey jewel jigsaw jockey jug juice jungle juniper kayak kennel kettle
    kidney kilt kimono kite kitten kiwi knob knot koala ladder ladle lagoon lake lamb lamp lantern larch lark
    lasso latch laurel lava lavender leaf leather lemon lemur lentil leopard lettuce lilac lily lime linen lion
    lizard llama lobster locket locomotive locust loft log loom lotus lynx macaw magnet magnolia magpie mallet
    mammoth mango maple marble marigold marlin marsh mask meadow medal melon meteor microscope milk mill mint
    mirror mitten moat mole monkey moon moose mosquito moss motor mouse mug mule muffin mushroom mussel mustard
    myrtle napkin necklace nest nettle newt nickel noodle nugget nutmeg oak oasis ocean octopus olive onion opal
    orange orchard orchid oregano ostrich oyster paddle padlock pagoda pail palm pancake panda pansy panther
    papaya paper parachute parcel parrot parsley pastry peach peacock peanut pearl pebble pelican pencil penguin
    penny peony pepper perfume pewter pheasant piano pickle picnic pigeon pillow pipe pistachio pitcher plate
    plum pocket poker polar pony poplar poppy porcupine potato pottery prawn pretzel prism puddle pumpkin puppet
    puppy purse pyramid quail quartz quilt quiver rabbit raccoon radar radio radish raft rail rainbow raisin
    rake raspberry rattle raven razor reef ribbon rice river robin robot rocket rope rose ruby rug ruler saddle
    saffron salad salmon sandal sandwich sapphire sardine satchel satellite saucer saxophone scarf scissors
    scooter scorpion screw seal seashell seaweed shark shawl sheep shelf shield shirt shoe shovel shrimp silk
    silver skate ski skunk slate sled slipper sloth snail snake soap sock sofa soup spade sparrow spear spider
    spinach sponge spoon spruce squash squid squirrel staple statue steak stone stool stove straw stream string
    submarine sugar suitcase sunflower swallow swan sweater sword syrup table tambourine tangerine tank tape
    tart teapot telescope temple tent thimble thistle throne thumb ticket tiger tile timber toad toaster tobacco
    tomato tongs toolbox tooth topaz torch tortoise toucan towel tower toy tractor tram tray treasure tree
    trolley trombone trophy trout truck trumpet trunk tulip tuna tunnel turban turkey turnip turtle tuxedo
    umbrella unicorn urchin valley vanilla vase vault velvet vest vinegar viola violet violin volcano vulture
    waffle wagon wallet walnut walrus wasp watch waterfall wax weasel wedge well whale wheat wheel whistle wick
    widow wig willow window wing wolf wombat wood wool worm wreath wrench yacht yarn yogurt zebra zeppelin
    zipper
    """.split()
)

# Filler: what the haystack sentences are made of.
ADJECTIVES = tuple(
    """
    old young tired cheerful quiet gentle clever patient nervous proud careful hungry lonely famous honest
    polite curious stubborn sleepy lucky brave shy busy kind tall friendly noisy serious thoughtful grumpy
    """.split()
)
PEOPLE = tuple(
    """
    baker teacher neighbor stranger visitor traveler postman clerk captain butcher tailor student widower mayor
    hunter miller guard porter dancer writer singer cousin uncle aunt nephew niece driver waiter plumber barber
    gardener merchant shepherd carpenter soldier poet
    """.split()
)
VERBS = tuple(
    """
    carried dropped bought sold noticed borrowed painted cleaned repaired lifted moved collected polished
    wrapped hid found admired pushed pulled counted measured described wanted missed examined sketched packed
    unpacked guarded traded
    """.split()
)
THINGS = tuple(
    """
    notebook newspaper magazine bundle package sack box bag map clock book letter painting lunchbox trinket
    brochure calendar receipt postcard photograph token sticker poster leaflet manuscript diary planner souvenir
    gadget cart pamphlet
    """.split()
)
PREPOSITIONS = tuple(
    """
    near behind beside under outside inside beyond across
    """.split()
)
SPOTS = tuple(
    """
    bridge road square stairs wall corner market station school hall yard path crossing shop terrace platform
    entrance pavement alley hallway shelter monument courtyard village
    """.split()
)
TIMES = tuple(
    """
    yesterday today later earlier afterwards recently eventually sometimes usually often once twice
    """.split()
)

# Cloze: who left what where.
NAMES = tuple(
    """
    Alice Anna Arthur Barbara Beatrice Benjamin Bernard Caroline Catherine Charles Charlotte Clara Daniel David
    Deborah Diana Dorothy Edgar Edward Eleanor Emily Emma Ernest Esther Felix Fiona Florence Frances Frank
    Frederick George Grace Hannah Harold Harriet Helen Henry Herbert Hugo Irene Isabel Jack Jacob James Jane
    Jasper Joan John Joseph Josephine Julia Karen Katherine Laura Leonard Lewis Louis Louise Lucas Lucy Lydia
    Malcolm Margaret Maria Martha Martin Matthew Michael Miriam Nathan Nicholas Nora Oliver Oscar Patrick Paula
    Peter Philip Rachel Rebecca Richard Robert Rosemary Samuel Sarah Simon Sophia Stephen Susan Sylvia Teresa
    Thomas Victor Victoria Walter William
    """.split()
)
PLACES = tuple(
    """
    kitchen cellar bathroom bedroom library office pantry closet basement parlor nursery lounge laundry workshop
    stable shed museum palace factory brewery dairy smithy theater gym arena casino convent monastery embassy
    prison barracks fortress lighthouse depot subway cabin bungalow villa mansion penthouse dormitory cafeteria
    restaurant canteen buffet kiosk vineyard swamp laboratory archive auditorium gymnasium aquarium zoo
    playground cemetery crypt bunker hangar shipyard dock warehouse ballroom chamber foyer vestibule armory
    treasury ministry academy college university seminary boathouse cloister darkroom dungeon gatehouse hayloft
    infirmary loggia mausoleum planetarium refectory sacristy sauna scullery stockroom storeroom toolshed
    washroom windmill
    """.split()
)
OBJECTS = tuple(
    """
    ring passport necktie certificate portrait portfolio medallion briefcase backpack cap cane cigarette bible
    scroll figurine ledger blueprint testament invitation songbook costume brooch pendant tiara crown scepter
    dowry heirloom toolkit flashlight thermos camcorder
    """.split()
)

# Topics: the name is an answer, the words are its evidence.
TOPICS: dict[str, tuple[str, ...]] = {
    "cooking": tuple(
        "recipe oven dough skillet broth spice frying simmer marinade batter whisk stew roast saucepan "
        "garnish dessert".split()
    ),
    "sailing": tuple(
        "mast anchor rudder keel starboard deck rigging tide regatta mooring hull helm spinnaker jib knots "
        "voyage".split()
    ),
    "music": tuple(
        "melody chorus rhythm orchestra concert harmony soprano tempo encore chord ballad conductor symphony "
        "lyrics quartet tune".split()
    ),
    "farming": tuple(
        "harvest plough crop pasture livestock seedling silo manure hay fertilizer cattle irrigation grain "
        "farmhand acre fodder".split()
    ),
    "medicine": tuple(
        "surgeon clinic vaccine symptom fever diagnosis nurse hospital remedy dosage infection therapy "
        "ambulance antibiotic surgery pharmacy".split()
    ),
    "astronomy": tuple(
        "planet orbit comet eclipse nebula asteroid gravity starlight cosmos observatory equinox supernova "
        "lunar pulsar solstice quasar".split()
    ),
    "football": tuple(
        "goalkeeper referee striker penalty offside league midfield stadium tackle halftime kickoff scoreline "
        "defender dribble header crossbar".split()
    ),
    "banking": tuple(
        "loan mortgage interest deposit credit savings cashier dividend account teller currency overdraft "
        "investor debt bond audit".split()
    ),
    "gardening": tuple(
        "trellis compost pruning shrub lawn greenhouse mulch weeding flowerbed trowel rosebush sprinkler "
        "hedgerow seedbed perennial topsoil".split()
    ),
    "law": tuple(
        "judge verdict lawyer jury plaintiff statute courtroom appeal testimony attorney lawsuit contract "
        "bail clause prosecutor subpoena".split()
    ),
    "weather": tuple(
        "storm thunder drizzle forecast hailstorm humidity lightning breeze blizzard barometer rainfall frost "
        "cloudburst monsoon sunshine fog".split()
    ),
    "cinema": tuple(
        "film actor director screenplay premiere audience scene camerawork sequel studio matinee stuntman "
        "soundtrack trailer projector script".split()
    ),
}
NUMBERS = tuple(str(number) for number in range(100, 1000))


def vocabulary() -> tuple[str, ...]:
    """Every word of the suite once, numbers excluded, in a fixed order."""
    filler = (*ADJECTIVES, *PEOPLE, *VERBS, *THINGS, *PREPOSITIONS, *SPOTS, *TIMES)
    topics = tuple(word for name, words in TOPICS.items() for word in (name, *words))
    return tuple(dict.fromkeys((*KEYS, *filler, *NAMES, *PLACES, *OBJECTS, *topics)))
