"""What `finetune mode=full` is compared with: the same steps in a plain Lightning script, as a user would write it.

python benchmarks/lightning_finetune.py ENCODER EPOCHS FRACTION
"""

from __future__ import annotations

import sys
import tempfile

import pytorch_lightning as pl
import timm
import torch
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAUROC
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_auroc
from torchvision.transforms import v2

from jigsawssl.data import open_archive


class Labelled(Dataset):
    """Images of a split through torchvision's transforms."""

    def __init__(self, split: str, fraction: float, transform: nn.Module) -> None:
        archive = open_archive("demo", split=split)
        rows = torch.randperm(len(archive), generator=torch.Generator().manual_seed(0))
        self.rows = rows[: max(8, round(fraction * len(archive)))].tolist()
        self.images = [Image.fromarray(archive.read(row)[..., 0]) for row in self.rows]
        self.labels = archive.labels
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[self.rows[index]])


class Classifier(pl.LightningModule):
    """A network, cross-entropy, AdamW."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.model = timm.create_model("resnet18", in_chans=1, num_classes=4)
        weights = {name.removeprefix("backbone."): value for name, value in load_file(encoder).items()}
        self.model.load_state_dict(weights, strict=False)
        self.auroc = MulticlassAUROC(4)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.auroc.update(self.model(batch[0]).softmax(1), batch[1])
        self.log("val_auroc", self.auroc, on_epoch=True)

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> tuple[Tensor, Tensor]:
        return self.model(batch[0]).softmax(1), batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=5e-4, weight_decay=0.05)


def main() -> None:
    """Train on a share of the labels, then judge on the test split."""
    encoder, epochs, fraction = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.45], [0.225])]
    changed = [v2.RandomResizedCrop(64, (0.6, 1.0)), v2.RandomHorizontalFlip(), v2.ColorJitter(0.2, 0.2)]
    train = Labelled("train", fraction, v2.Compose([*changed, *end]))
    val, test = (Labelled(split, 1.0, v2.Compose(end)) for split in ("val", "test"))
    model = Classifier(encoder)
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val_auroc", mode="max", save_weights_only=True)
        trainer = pl.Trainer(
            max_epochs=epochs,
            check_val_every_n_epoch=-(-epochs // 10),
            callbacks=[best, EarlyStopping("val_auroc", mode="max", patience=4)],
            accelerator="cpu",
            logger=False,
        )
        loader = DataLoader(train, min(32, len(train)), shuffle=True, drop_last=True)
        trainer.fit(model, loader, DataLoader(val, 256))
        print(trainer.current_epoch, "epochs")
        judged = trainer.predict(model, DataLoader(test, 256), ckpt_path=best.best_model_path)
    scores, labels = (torch.cat(part) for part in zip(*judged, strict=True))
    print(float(multiclass_auroc(scores, labels, 4)), float(multiclass_accuracy(scores, labels, 4)))


if __name__ == "__main__":
    main()
