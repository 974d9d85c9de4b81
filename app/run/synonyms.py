"""What other codes call our options and commands, so that a word of theirs is understood where it is refused."""

from collections.abc import Iterable

#: name here, to names elsewhere; one of ours that is not there to choose from is passed over
SYNONYMS = {
    # commands
    "fit": "train pretrain run",
    "validate": "eval val",
    "generate": "sample infer inference",
    "configs": "list experiments",
    "new": "create init",
    "prepare": "download preprocess tokenize",
    # what `app new` begins
    "architecture": "model network net arch",
    "callback": "watcher",
    # training
    "optimizer": "optim opt",
    "learning_rate": "lr max_lr peak_lr base_lr",
    "schedule": "lr_scheduler scheduler lr_schedule lr_decay",
    "warmup_steps": "warmup warmup_iters num_warmup_steps",
    "final_learning_rate_ratio": "min_lr min_lr_ratio final_lr",
    "weight_decay": "wd l2",
    "beta1": "betas adam_beta1 momentum",
    "beta2": "adam_beta2",
    "gradient_clip": "clip grad_clip clip_grad max_grad_norm gradient_clip_val clip_grad_norm",
    # sizes of a network
    "d_model": "hidden_size hidden_dim embed_dim embedding_dim n_embd width dim model_dim",
    "d_head": "head_dim head_size dim_head",
    "n_layers": "layers depth n_layer num_layers num_hidden_layers n_blocks",
    "n_heads": "heads n_head num_heads num_attention_heads",
    "n_banks": "banks experts n_experts num_experts",
    "dropout": "drop dropout_p dropout_rate",
    # data
    "data": "dataset datamodule",
    "block_size": "block seq_len seq_length sequence_length max_seq_len context context_length context_size n_ctx",
    "batch_size": "bs batch train_batch_size",
    "num_workers": "workers n_workers",
    # run and trainer
    "model": "arch architecture",
    "seed": "seed_everything random_seed",
    "max_steps": "steps n_steps num_steps epochs n_epochs num_epochs max_epochs iters max_iters iterations",
    "val_check_interval": "eval_interval eval_every eval_steps val_every",
    "log_every_n_steps": "log_interval log_every logging_steps",
    "checkpoint_every_n_steps": "save_interval save_every save_steps",
    "accumulate_grad_batches": "grad_accum accumulation gradient_accumulation_steps",
    "accelerator": "device",
    "devices": "gpus n_gpus num_gpus n_devices",
    "precision": "dtype amp mixed_precision",
}

_OURS: dict[str, list[str]] = {}
for _name, _others in SYNONYMS.items():
    for _other in _others.split():
        _OURS.setdefault(_other, []).append(_name)


def synonym(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate that others call this, or that has this name but for hyphens and capitals; None without one."""
    known = {*candidates}
    plain = name.lower().replace("-", "_")
    return next((ours for ours in (*_OURS.get(plain, ()), plain) if ours in known), None)
