"""Run the sweep (a) that one writes with Ray Tune by its examples: `obvious_sweep.py SETUP TEACHER DATA FOLDER`.

The teacher runs in every trial, a DataLoader makes the batches, and each step calls `.item()`. Nothing is slowed
down on purpose.
"""

import sys
from pathlib import Path

import torch
from ray import tune
from sweep_parts import EPOCHS, hyperparameters, image_sets, network, setup_from
from torch.nn import functional
from torch.utils.data import DataLoader


def train(config):
    setup, chosen = setup_from(config["setup"]), config["chosen"]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    train_set, val_set = image_sets(setup, Path(config["data"]))
    loader, val_loader = DataLoader(train_set, setup.batch_size, shuffle=True), DataLoader(val_set, 256)
    teacher = network(setup.teacher, setup.class_count)
    teacher.load_state_dict(torch.load(config["teacher"], weights_only=True))
    teacher.eval()
    student = network(setup.student, setup.class_count)
    optimizer = torch.optim.SGD(student.parameters(), lr=chosen["lr"], momentum=0.9)
    temperature, alpha = chosen["temperature"], chosen["alpha"]
    for _ in range(EPOCHS):
        student.train()
        running = 0.0
        for images, labels in loader:
            with torch.no_grad():
                wanted = functional.softmax(teacher(images) / temperature, dim=1)
            logits = student(images)
            soft = functional.kl_div(functional.log_softmax(logits / temperature, dim=1), wanted, reduction="batchmean")
            loss = alpha * temperature**2 * soft + (1 - alpha) * functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            running += loss.item()
        student.eval()
        with torch.no_grad():
            right = sum((student(images).argmax(1) == labels).sum().item() for images, labels in val_loader)
        tune.report({"accuracy": right / len(val_set), "loss": running / len(loader)})


if __name__ == "__main__":
    setup, teacher, data, folder = sys.argv[1:]
    space = {"setup": setup, "teacher": teacher, "data": data}
    space["chosen"] = tune.grid_search(hyperparameters(setup_from(setup).trials))
    tuner = tune.Tuner(
        tune.with_resources(train, {"cpu": 1}),
        param_space=space,
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    assert not results.errors, results.errors
    print(f"best accuracy {results.get_best_result('accuracy', 'max').metrics['accuracy']:.4f}")
