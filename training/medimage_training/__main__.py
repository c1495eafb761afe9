"""For launchers: torchrun --nproc-per-node 4 -m medimage_training --config train.yaml"""

from medimage_training.cli import finetune

if __name__ == "__main__":
    finetune()
