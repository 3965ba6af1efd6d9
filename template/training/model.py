"""The resident base model with one LoRA adapter: loading, resetting, losses.

The base is loaded once per process and never written to. The adapter is injected once and reset before each
evaluation, so that a loss does not depend on earlier evaluations.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
import transformers.utils.hub
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn

from template.config import Hyperparameters, TrainingArgs
from template.data.chat_templates import ChatTemplate, template_for
from template.data.encoding import EncodedRow, Tokenize
from template.errors import ConfigError, HostError, Reason, RemoteError, SubmissionError, SubnetError
from template.training import determinism
from template.training.attention import Layout, packed_attention
from template.training.cross_entropy import target_losses
from template.training.cuda_graphs import TrainingGraphs
from template.training.dropout import CpuDropout, CudaDropout, Dropout
from template.training.families import check_config
from template.training.heap import return_freed_memory
from template.training.layers import replace_layers
from template.training.lora import LoRALinear
from template.training.model_files import check_snapshot, digest_folder, file_states, find_kind_problem
from template.training.packing import Pack, pack_rows
from template.training.parity import check_parity
from template.training.tokenizer import PieceTokenizer

# Name under which `packed_attention` is registered with transformers.
_ATTENTION = "packed_rows"


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Origin of the weights: a Hub revision, or else the digest of a local folder."""

    model_id: str
    revision: str | None
    digest: str | None


def _has_flash_attention(base: transformers.PreTrainedModel, device: torch.device) -> bool:
    """Check that torch's flash attention trains this model in half precision.

    It needs Ampere or newer, and no soft cap on the scores. Above a head size of 128 the backward pass was missing on
    small chips, which is assumed here without reading the current source.
    """
    config: Any = base.config.get_text_config()
    if device.type != "cuda" or getattr(config, "attn_logit_softcapping", None) is not None:
        return False
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    capability = torch.cuda.get_device_capability(device)
    return capability >= (8, 0) and head_size <= (256 if capability in ((8, 0), (9, 0)) else 128)


class _GatherRows(torch.autograd.Function):
    """Select unique rows (T, H) of (N, H), so that the backward needs no sum."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(indices)
        ctx.shape = hidden.shape
        return hidden.index_select(0, indices)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (indices,), (gradient,) = ctx.saved_tensors, gradients
        return gradient.new_zeros(ctx.shape).index_copy_(0, indices, gradient), None


class ScoringModel:
    """A frozen causal language model with a float32 LoRA adapter on its linear layers."""

    def __init__(
        self,
        base: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        source: ModelSource,
        hyperparameters: Hyperparameters,
        device: torch.device,
    ) -> None:
        self.tokenizer = tokenizer
        self._tokenize = PieceTokenizer(tokenizer)
        self.source = source
        self.template: ChatTemplate = template_for(source.model_id)
        self.hyperparameters = hyperparameters
        self.device = device
        self.dtype = base.dtype
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=hyperparameters.lora_rank,
            lora_alpha=hyperparameters.lora_alpha,
            lora_dropout=hyperparameters.lora_dropout,
            target_modules="all-linear",
        )
        # PEFT's documented hook for custom layers.
        config._register_custom_module({nn.Linear: LoRALinear})
        self.network = get_peft_model(base, config)
        self._causal: Any = self.network.get_base_model()
        self._softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        self._adapted = [module for module in self.network.modules() if isinstance(module, LoRALinear)]
        replace_layers(self.network)
        self.network.eval()
        self.dropout: Dropout | None = None
        if p := hyperparameters.lora_dropout:
            self.dropout = CudaDropout(p, device) if device.type == "cuda" else CpuDropout(p)
        self.uses_varlen = self.dtype == torch.bfloat16 and _has_flash_attention(base, device)
        self.graphs = self._make_graphs() if self.uses_varlen else None
        self._check_parts()

    @property
    def vocabulary_size(self) -> int:
        return int(self._causal.get_output_embeddings().weight.shape[0])

    @property
    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """Trainable tensors by name: lora_A (rank, in), lora_B (out, rank) of each layer."""
        return {name: value for name, value in self.network.named_parameters() if value.requires_grad}

    def tokenize(self, before: str, content: str = "", after: str = "", /) -> list[int]:
        """Tokenize; SubmissionError(MALFORMED) for a token without an embedding."""
        ids = self._tokenize(before, content, after)
        if max(ids, default=0) >= self.vocabulary_size:
            # Some tokenizers have tokens that their text model lacks, such as image markers, which crash CUDA.
            raise SubmissionError(Reason.MALFORMED, f"a text holds a token unknown to {self.source.model_id}")
        return ids

    def reset_adapter(self, lucky_num: int) -> None:
        """Initialize the adapter from a seed: lora_A uniform, lora_B zero.

        Drawn on the CPU, so that all devices start from equal values. Source: peft's LoraLayer.reset_lora_parameters,
        kaiming_uniform_(a=sqrt(5)), whose bound is 1/sqrt(fan_in).
        """
        generator = determinism.make_generator(lucky_num, "adapter")
        with torch.no_grad():
            for name, parameter in self.adapter_parameters.items():
                parameter.grad = None
                if "lora_A" in name:
                    bound = 1.0 / math.sqrt(parameter.shape[1])
                    # Explicit dtype: loading a model in another thread changes the default for a while.
                    drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
                else:
                    parameter.zero_()

    def set_dropout(self, is_on: bool) -> None:
        """Switch the adapter's dropout; the base always stays in evaluation mode."""
        for layer in self._adapted:
            layer.dropout = self.dropout if is_on else None

    def seed_dropout(self, lucky_num: int, step: int, pack: int) -> None:
        """Start the dropout's stream of one pack, counted from 0, in the calling thread."""
        if self.dropout is not None:
            self.dropout.seed(determinism.derive_seed(lucky_num, f"dropout {step} {pack}"))

    def target_losses(self, pack: Pack) -> torch.Tensor:
        """Compute the cross-entropy (T,) float32, in nats, of a pack's targets."""
        hidden = self._decode(pack.input_ids, pack.positions, pack.layout)
        return self.losses_at(_GatherRows.apply(hidden, pack.sources), pack)  # type: ignore[no-untyped-call]

    def losses_at(self, sources: torch.Tensor, pack: Pack) -> torch.Tensor:
        """Compute the losses (T,) from the hidden states (T, H) at the pack's sources."""
        return target_losses(sources, pack.targets, self._causal.get_output_embeddings(), self._softcap)

    def _decode(self, ids: torch.Tensor, positions: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Compute the hidden states (N, H) of ids and positions (1, N)."""
        decoder = self._causal.get_decoder()
        output = decoder(input_ids=ids, position_ids=positions, use_cache=False, layout=layout)
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def _make_graphs(self) -> TrainingGraphs:
        hyper = self.hyperparameters
        return TrainingGraphs(
            self._decode,
            list(self.adapter_parameters.values()),
            self.dropout if isinstance(self.dropout, CudaDropout) else None,
            device=self.device,
            is_dropping=lambda: any(layer.dropout is not None for layer in self._adapted),
            max_rows=hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps,
        )

    @torch.no_grad()
    def _check_parts(self) -> None:
        """Raise ConfigError unless decoder and head give the losses of the whole model.

        Not to the bit: the model may cap its logits before they are float32, and its head sees another shape.
        """
        ids = tuple(range(8))
        probe = EncodedRow(ids, (False,) + (True,) * 7, line=1)
        logits = self._causal(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits.float()[0]
        if not logits.isfinite().all():
            raise HostError(f"{self.source.model_id}: the base's logits are not finite after loading")
        (pack,) = pack_rows([probe], [0], len(ids), self.device, self.uses_varlen)
        whole = F.cross_entropy(logits[:-1], pack.targets, reduction="none")
        if not torch.allclose(whole, self.target_losses(pack), rtol=0.0, atol=0.04 * logits.abs().max().item()):
            raise ConfigError(f"{self.source.model_id}: unsupported model, expected a decoder and an output head")


def load_model(
    args: TrainingArgs,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None = None,
    model_path: Path | None = None,
) -> ScoringModel:
    """Load a model from the Hub at a resolved revision, or from a local folder.

    Reads safetensors only and runs no code from the repository.
    """
    template_for(args.model_id)  # fail before the download
    with _translate_load_errors(args, model_path):
        before = None if model_path is None else file_states(model_path)
        source, origin, where = _resolve_source(args, cache_dir, model_path)
        config = transformers.AutoConfig.from_pretrained(origin, trust_remote_code=False, **where)
        check_config(config, args.model_id, origin)  # before the weights are downloaded
        tokenizer = _read_tokenizer(origin, where)

        def wrap(base: Any, device: torch.device) -> ScoringModel:
            return ScoringModel(base, tokenizer, source, args.hyperparameters, device)

        with determinism.deterministic_mode(device):
            base = _read_base(origin, dtype, where)
            _check_files(source, where, has_weights=True)
            if model_path is not None and file_states(model_path) != before:
                raise ConfigError(f"--model_path {model_path}: a file changed while the model was loaded; try again")
            check_parity(base, lambda part: wrap(part, torch.device("cpu")), origin)
            model = wrap(base.to(device), device)
    return_freed_memory()  # of the threads in which transformers converts weights, and of weights that were joined
    return model


def load_tokenizer(args: TrainingArgs, *, model_path: Path | None = None) -> Tokenize:
    """Load a model's tokenizer only."""
    with _translate_load_errors(args, model_path):
        source, origin, where = _resolve_source(args, None, model_path)
        tokenizer = _read_tokenizer(origin, where)
        _check_files(source, where, has_weights=False)
        return PieceTokenizer(tokenizer)


@contextlib.contextmanager
def _translate_load_errors(args: TrainingArgs, model_path: Path | None) -> Iterator[None]:
    try:
        yield
    except SubnetError:
        raise
    except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError) as error:
        raise HostError(f"this machine cannot hold {args.model_id}: {error}") from error
    except Exception as error:
        raise _translate_load_error(error, args, model_path) from error


def _read_base(origin: str, dtype: torch.dtype, where: dict[str, str | None]) -> Any:
    transformers.AttentionInterface.register(_ATTENTION, packed_attention)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        origin,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation=_ATTENTION,
        output_loading_info=True,
        **where,
    )
    base, report = loaded
    if missing := sorted(report["missing_keys"]):
        # transformers only warns, and initializes them at random.
        raise ConfigError(f"the model {origin} lacks the weights {', '.join(missing[:3])}")
    for tensor in (*base.parameters(), *base.buffers()):
        # Otherwise the weights stay mapped to their file, and a change of the file changes losses.
        tensor.data = tensor.data.clone()
    return base


def _read_tokenizer(origin: str, where: dict[str, str | None]) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(origin, trust_remote_code=False, **where)
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:  # transformers makes up an empty one
        raise ConfigError(f"the model {origin} has no tokenizer files")
    return tokenizer


def _resolve_source(
    args: TrainingArgs, cache_dir: Path | None, model_path: Path | None
) -> tuple[ModelSource, str, dict[str, str | None]]:
    """Return the source, its name for transformers and the arguments that pin it."""
    if model_path is not None:
        if (problem := find_kind_problem(model_path)) is not None:
            raise ConfigError(f"--model_path {model_path}: {problem}")
        return ModelSource(model_id=args.model_id, revision=None, digest=digest_folder(model_path)), str(model_path), {}
    if Path(args.model_id).exists():
        raise ConfigError(
            f"the folder {args.model_id} in the working directory hides the Hub's model; "
            f"pass --model_path {args.model_id} to use it, or run elsewhere"
        )
    where = {"cache_dir": str(cache_dir) if cache_dir else None, "revision": args.revision}
    hub: Any = transformers.utils.hub
    # The path in the cache contains the commit.
    commit: str | None = hub.extract_commit_hash(hub.cached_file(args.model_id, "config.json", **where), None)
    if commit is None:
        raise ConfigError(f"training_args: {args.model_id} at {args.revision or 'main'} has no config.json")
    where["revision"] = commit
    return ModelSource(model_id=args.model_id, revision=commit, digest=None), args.model_id, where


def _check_files(source: ModelSource, where: dict[str, str | None], *, has_weights: bool) -> None:
    if source.revision is not None:
        hub: Any = transformers.utils.hub
        check_snapshot(Path(hub.cached_file(source.model_id, "config.json", **where)).parent, has_weights=has_weights)


def _translate_load_error(error: Exception, args: TrainingArgs, model_path: Path | None) -> SubnetError:
    causes = _chain(error, lambda cause: cause.__cause__)
    setting = f"--model_path {model_path}" if model_path else f"{args.model_id} at {args.revision or 'main'}"
    # transformers re-exports the errors of huggingface_hub, which only template.hub imports.
    hub: Any = transformers.utils.hub
    not_found = (hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.GatedRepoError)
    if any(isinstance(cause, not_found) for cause in causes):
        return ConfigError(f"training_args: the Hub has no readable model {setting}")
    # A tokenizer's error has no cause, only a context, which may also be an unrelated answer of the Hub.
    contexts = _chain(error, lambda cause: cause.__cause__ or cause.__context__)
    for kind in (RemoteError, (hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)):
        if failure := next((cause for cause in contexts if isinstance(cause, kind)), None):
            return RemoteError(f"the Hub did not deliver {setting}: {failure}")
    if any(isinstance(cause, hub.HfHubHTTPError) or "httpx" in type(cause).__module__ for cause in causes):
        return RemoteError(f"the Hub did not deliver {setting}: {error}")
    if any(isinstance(cause, OSError) and cause.errno is not None for cause in causes):
        return HostError(f"this machine could not read {setting}: {error}")
    return ConfigError(f"{setting} cannot be loaded as a causal language model: {error}")


def _chain(error: BaseException, follow: Callable[[BaseException], BaseException | None]) -> list[BaseException]:
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = follow(cause)
    return chain
