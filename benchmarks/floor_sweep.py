"""Train the floor (b): the same students with ready tensors and ready teacher targets; no teacher, decoding or Ray.

`python benchmarks/floor_sweep.py SETUP READY`: READY is the folder that `prepare` wrote before the timing began.
"""

import sys
import time
from pathlib import Path

import torch
from sweep_parts import EPOCHS, Setup, hyperparameters, image_sets, network, setup_from
from torch import multiprocessing
from torch.nn import functional
from torch.utils.data import DataLoader

PROCESSES = 2


def prepare(setup: Setup, teacher_file: Path, data: Path, ready: Path) -> float:
    """Write the float32 views of every epoch and the teacher's logits.

    Returns:
        T, the CPU seconds of one image in the teacher's forward pass, with one thread.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = network(setup.teacher, setup.class_count).eval()
    teacher.load_state_dict(torch.load(teacher_file, weights_only=True))
    train_set, val_set = image_sets(setup, data)
    epochs = 1 if setup.data == "mnist" else EPOCHS  # MNIST's views are the same in every epoch
    seconds = images = 0.0
    for epoch in range(epochs):
        parts = [[], [], []]
        for pixels, labels in DataLoader(train_set, setup.batch_size):
            started = time.process_time()
            with torch.inference_mode():
                logits = teacher(pixels)
            seconds, images = seconds + time.process_time() - started, images + len(pixels)
            for part, values in zip(parts, (pixels, labels, logits.clone()), strict=True):
                part.append(values)
        torch.save([torch.cat(part) for part in parts], ready / f"train-{epoch}.pt")
    val = [torch.cat(part) for part in zip(*DataLoader(val_set, 256), strict=True)]
    torch.save(val, ready / "val.pt")
    return seconds / images


def work(setup: Setup, ready: Path, first: int) -> None:
    """Train every PROCESSES-th student, beginning with number `first`."""
    torch.set_num_threads(1)
    stepping = steps = 0.0
    epochs = [torch.load(file, weights_only=True) for file in sorted(ready.glob("train-*.pt"))]
    val_images, val_labels = torch.load(ready / "val.pt", weights_only=True)
    layout = torch.channels_last
    for chosen in hyperparameters(setup.trials)[first::PROCESSES]:
        torch.manual_seed(0)
        student = network(setup.student, setup.class_count).to(memory_format=layout)
        optimizer = torch.optim.SGD(student.parameters(), lr=chosen["lr"], momentum=0.9, fused=True)
        temperature, alpha = chosen["temperature"], chosen["alpha"]
        for epoch in range(EPOCHS):
            images_all, labels_all, logits_all = epochs[epoch % len(epochs)]
            student.train()
            started = time.process_time()
            for at in torch.randperm(len(labels_all)).split(setup.batch_size):
                logits = student(images_all[at].contiguous(memory_format=layout))
                wanted = functional.softmax(logits_all[at] / temperature, dim=1)
                log_p = functional.log_softmax(logits / temperature, dim=1)
                soft = functional.kl_div(log_p, wanted, reduction="batchmean")
                loss = alpha * temperature**2 * soft + (1 - alpha) * functional.cross_entropy(logits, labels_all[at])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            stepping, steps = stepping + time.process_time() - started, steps + len(labels_all)
            student.eval()
            with torch.inference_mode():
                parts = val_images.split(64)  # faster than larger ones: they stay in the cache
                named = torch.cat([student(part.contiguous(memory_format=layout)).argmax(1) for part in parts])
            right = (named == val_labels).float().mean().item()
        print(f"accuracy {right:.4f}, S {stepping / steps * 1e3:.4f} ms an image", flush=True)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    chosen = setup_from(sys.argv[1]), Path(sys.argv[2])
    others = [context.Process(target=work, args=(*chosen, number)) for number in range(1, PROCESSES)]
    for worker in others:
        worker.start()
    work(*chosen, 0)
    for worker in others:
        worker.join()
    sys.exit(max(worker.exitcode or 0 for worker in others))
