"""ADE20K with the 150 classes of the scene parsing challenge of 2016."""

from rmt_jax.data.config import DataConfig

URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"

# The first name of every line of objectInfo150.txt: label maps hold 1 .. 150 for these, and 0 for everything else.
CLASS_NAMES = tuple(
    name.strip()
    for name in """
wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk; person; earth;
door; table; mountain; plant; curtain; chair; car; water; painting; sofa; shelf; house; sea; mirror; rug;
field; armchair; seat; fence; desk; rock; wardrobe; lamp; bathtub; railing; cushion; base; box; column;
signboard; chest of drawers; counter; sand; sink; skyscraper; fireplace; refrigerator; grandstand; path;
stairs; runway; case; pool table; pillow; screen door; stairway; river; bridge; bookcase; blind; coffee table;
toilet; flower; book; hill; bench; countertop; stove; palm; kitchen island; computer; swivel chair; boat; bar;
arcade machine; hovel; bus; towel; light; truck; tower; chandelier; awning; streetlight; booth; television;
airplane; dirt track; apparel; pole; land; bannister; escalator; ottoman; bottle; buffet; poster; stage; van;
ship; fountain; conveyer belt; canopy; washer; plaything; swimming pool; stool; barrel; basket; waterfall;
tent; bag; minibike; cradle; oven; ball; food; step; tank; trade name; microwave; pot; animal; bicycle; lake;
dishwasher; screen; blanket; sculpture; hood; sconce; vase; traffic light; tray; ashcan; fan; pier; crt
screen; plate; monitor; bulletin board; shower; radiator; glass; clock; flag
""".replace("\n", " ").split(";")
)


def check_reduced(config: DataConfig) -> None:
    """Without `reduce_zero_label`, everything else would be learned as a class and the last class be missing.

    Raises:
        ValueError: it is not set.
    """
    if not config.segmentation.reduce_zero_label:
        raise ValueError(
            f"data.name={config.name!r} numbers its {len(CLASS_NAMES)} classes 1 .. {len(CLASS_NAMES)}, and 0 is none "
            "of them: set data.segmentation.reduce_zero_label=True"
        )
