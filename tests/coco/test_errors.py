import pytest

from corrdet.coco import AnnotationError, CocoFileError, MaskError
from corrdet.data.image_checks import ImageReadError
from corrdet.data.voc import VocError, VocFolderError
from corrdet.errors import CorrdetError
from corrdet.files import OtherFilesError, ReadError
from corrdet.report import TrainingFileError


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (AnnotationError, ValueError),
        (CocoFileError, ValueError),
        (MaskError, ValueError),
        (TrainingFileError, ValueError),
        (VocError, ValueError),
        (ReadError, OSError),
        (OtherFilesError, FileExistsError),
        (ImageReadError, OSError),
        (VocFolderError, FileNotFoundError),
    ],
)
def test_what_the_user_can_mend(error, builtin):
    """Commands print these as one line; callers catch what they would expect."""
    assert issubclass(error, CorrdetError) and issubclass(error, builtin)
