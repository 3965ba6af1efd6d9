"""The resident base model with one LoRA adapter on it: loading, resetting, and its forward in two halves.

The base is loaded once per process and never written to. The adapter is injected once and put back to its
initial values before each score, so what was scored before cannot be felt.
"""

import hashlib
import math
from collections.abc import Callable
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
from template.training.attention import PaddedBlock, VarlenSpans, packed_attention
from template.training.cross_entropy import target_losses
from template.training.cuda_graphs import TrainingGraphs
from template.training.dropout import CudaDropout, Dropout, make_dropout
from template.training.layers import replace_layers
from template.training.lora import LoRALinear
from template.training.model_files import check_snapshot
from template.training.packing import Pack, pack_rows
from template.training.tokenizer import PieceTokenizer

# What the models call our attention by.
_ATTENTION = "packed_rows"

# What of a model folder can move the number; a README beside the weights cannot.
_DIGESTED_SUFFIXES = {".safetensors", ".json", ".model", ".txt"}


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which weights a model was loaded from: a Hub commit or a local folder's digest, the other being None."""

    model_id: str
    revision: str | None
    digest: str | None


def _has_flash_attention(base: transformers.PreTrainedModel, device: torch.device) -> bool:
    """Whether torch's flash attention has a way forward and back for this model in half precision on this device.

    From Ampere on, without a cap on scores. Wider heads than 128 have had no way back on small chips, so they are left
    to torch's other kernels there: on the safe side, not read from this version's source.
    """
    config: Any = base.config.get_text_config()
    if device.type != "cuda" or getattr(config, "attn_logit_softcapping", None) is not None:
        return False
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    capability = torch.cuda.get_device_capability(device)
    return capability >= (8, 0) and head_size <= (256 if capability in ((8, 0), (9, 0)) else 128)


class _GatherRows(torch.autograd.Function):
    """Rows (T, H) of (N, H), in a training none of them twice, so that the way back needs no sum."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.shape = hidden.shape
        return hidden.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (places,), (gradient,) = ctx.saved_tensors, gradients
        return gradient.new_zeros(ctx.shape).index_copy_(0, places, gradient), None


class ScoringModel:
    """A causal language model, frozen, with a float32 LoRA adapter on every linear layer but the output head."""

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
        # PEFT's own seam for a layer of one's own kind.
        config._register_custom_module({nn.Linear: LoRALinear})
        self.network = get_peft_model(base, config)
        self._causal: Any = self.network.get_base_model()
        self._softcap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
        self._adapted = [module for module in self.network.modules() if isinstance(module, LoRALinear)]
        replace_layers(self.network)
        self.network.eval()
        p = hyperparameters.lora_dropout
        self.dropout: Dropout | None = make_dropout(p, device) if p else None
        self._lucky_num = 0
        self.attends_in_place = self.dtype == torch.bfloat16 and _has_flash_attention(base, device)
        self.graphs = self._make_graphs() if self.attends_in_place else None
        self._check_halves()

    @property
    def vocabulary_size(self) -> int:
        """Rows of the output head."""
        return int(self._causal.get_output_embeddings().weight.shape[0])

    @property
    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable tensors by name: lora_A (rank, in) and lora_B (out, rank) of each adapted layer."""
        return {name: value for name, value in self.network.named_parameters() if value.requires_grad}

    @property
    def base_parameters(self) -> dict[str, torch.Tensor]:
        """The frozen tensors by name."""
        return {name: value for name, value in self.network.named_parameters() if not value.requires_grad}

    def tokenize(self, before: str, content: str = "", after: str = "", /) -> list[int]:
        """As `Tokenize`. Raises: SubmissionError (MALFORMED) for a token that has no embedding."""
        ids = self._tokenize(before, content, after)
        if max(ids, default=0) >= self.vocabulary_size:
            # Some tokenizers know more than their text model does, such as an image marker; CUDA would not survive it.
            raise SubmissionError(Reason.MALFORMED, f"a text holds a token that {self.source.model_id} cannot read")
        return ids

    def reset_adapter(self, lucky_num: int) -> None:
        """Puts the adapter at its initial values for this seed: lora_A uniform, lora_B zero.

        Drawn on the CPU so that every device starts from the same values. Source: peft's
        LoraLayer.reset_lora_parameters, kaiming_uniform_(a=sqrt(5)), whose bound comes to 1/sqrt(fan_in).
        """
        self._lucky_num = lucky_num
        generator = determinism.make_generator(lucky_num, "adapter")
        with torch.no_grad():
            for name, parameter in self.adapter_parameters.items():
                parameter.grad = None
                if "lora_A" in name:
                    bound = 1.0 / math.sqrt(parameter.shape[1])
                    # The dtype is spelled out: loading a model elsewhere in the process changes the default meanwhile.
                    drawn = torch.empty(parameter.shape, dtype=torch.float32, device="cpu")
                    parameter.copy_(drawn.uniform_(-bound, bound, generator=generator))
                else:
                    parameter.zero_()

    def set_dropout(self, is_on: bool) -> None:
        """Switches the adapter's dropout; the base's own layers stay in evaluation mode always."""
        for layer in self._adapted:
            layer.dropout = self.dropout if is_on else None

    def seed_dropout(self, step: int, pack: int) -> None:
        """Begins the dropout's stream for a pack of an optimizer step, both counted from 0, in the calling thread.

        Each has its own, so that packs can be worked on in any order or at the same time.
        """
        if self.dropout is not None:
            self.dropout.seed(determinism.derive_seed(self._lucky_num, f"dropout {step} {pack}"))

    def hidden_states(self, pack: Pack) -> torch.Tensor:
        """Final hidden states (M, H) of a pack's tokens without the filling."""
        return self._decode(pack.input_ids, pack.positions, pack.spans, pack.blocks)[: pack.token_count]

    def target_losses(self, pack: Pack) -> torch.Tensor:
        """The cross-entropy in nats (T,) float32 of each target of a pack; the head runs for those alone."""
        hidden = self._decode(pack.input_ids, pack.positions, pack.spans, pack.blocks)
        return self.losses_at(_GatherRows.apply(hidden, pack.sources), pack)  # type: ignore[no-untyped-call]

    def losses_at(self, sources: torch.Tensor, pack: Pack) -> torch.Tensor:
        """The same (T,), from the hidden states (T, H) at the pack's sources."""
        return target_losses(sources, pack.targets, self._causal.get_output_embeddings(), self._softcap)

    def _decode(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        spans: VarlenSpans | None,
        blocks: tuple[PaddedBlock, ...] = (),
    ) -> torch.Tensor:
        """Hidden states (N, H) of ids and positions (1, N)."""
        decoder = self._causal.get_decoder()
        output = decoder(input_ids=ids, position_ids=positions, use_cache=False, blocks=blocks, spans=spans)
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
            most_rows=hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps,
        )

    @torch.no_grad()
    def _check_halves(self) -> None:
        """Raises ConfigError unless the losses of a pack are those of the model's own forward, up to rounding.

        Not to the bit: the model may cap its logits before they are float32, and its head sees another shape.
        """
        ids = tuple(range(8))
        probe = EncodedRow(ids, (False,) + (True,) * 7, line=1)
        logits = self._causal(input_ids=torch.tensor([ids], device=self.device), use_cache=False).logits.float()[0]
        if not logits.isfinite().all():
            raise HostError(f"{self.source.model_id}: the base's logits are not finite as it was read here")
        (pack,) = pack_rows([probe], [0], len(ids), self.device, self.attends_in_place)
        whole = F.cross_entropy(logits[:-1], pack.targets, reduction="none")
        if not torch.allclose(whole, self.target_losses(pack), rtol=0.0, atol=0.04 * logits.abs().max().item()):
            raise ConfigError(f"{self.source.model_id}: this model does more than a decoder and an output head")


def load_model(
    args: TrainingArgs,
    *,
    device: torch.device,
    dtype: torch.dtype,
    cache_dir: Path | None = None,
    model_path: Path | None = None,
) -> ScoringModel:
    """The scoring model of `args`, from the Hub at a resolved revision or from the local folder `model_path`.

    safetensors only, and no code from the repository is run.
    Raises: ConfigError when there is no such model or it is of no supported kind; RemoteError when the Hub cannot be
    reached; HostError when this machine cannot hold it.
    """
    template_for(args.model_id)  # before gigabytes are fetched for a model that has none
    try:
        source, origin, where = _resolve_source(args, cache_dir, model_path)
        tokenizer = _read_tokenizer(origin, where)
        with determinism.deterministic_mode(device):
            base = _read_base(origin, dtype, where)
            _check_files(source, where, has_weights=True)
            return ScoringModel(base.to(device), tokenizer, source, args.hyperparameters, device)
    except (SubnetError, KeyboardInterrupt):
        raise
    except (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError) as error:
        raise HostError(f"{device} cannot hold {args.model_id}: {error}") from error
    except Exception as error:
        raise _translate_load_error(error, args, model_path) from error


def load_tokenizer(args: TrainingArgs, *, model_path: Path | None = None) -> Tokenize:
    """The model's tokenizer alone. Raises: as `load_model`."""
    try:
        source, origin, where = _resolve_source(args, None, model_path)
        tokenizer = _read_tokenizer(origin, where)
        _check_files(source, where, has_weights=False)
    except (SubnetError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise _translate_load_error(error, args, model_path) from error
    return PieceTokenizer(tokenizer)


def _read_base(origin: str, dtype: torch.dtype, where: dict[str, str | None]) -> Any:
    """The model with every one of its weights from the files. Raises: ConfigError when some are not there."""
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
        # transformers would only warn, and make them up from the process's random stream.
        raise ConfigError(f"the model {origin} lacks the weights {', '.join(missing[:3])}")
    return base


def _read_tokenizer(origin: str, where: dict[str, str | None]) -> Any:
    """The model's tokenizer. Raises: ConfigError when there are no files of one: transformers makes an empty one up."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(origin, trust_remote_code=False, **where)
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:
        raise ConfigError(f"the model {origin} has no tokenizer files")
    return tokenizer


def _resolve_source(
    args: TrainingArgs, cache_dir: Path | None, model_path: Path | None
) -> tuple[ModelSource, str, dict[str, str | None]]:
    """The source, the name to load it by, and the arguments that pin it."""
    if model_path is not None:
        if not (model_path / "config.json").is_file():
            raise ConfigError(f"--model_path {model_path}: no config.json there; expected a folder with a model")
        return ModelSource(model_id=args.model_id, revision=None, digest=digest_folder(model_path)), str(model_path), {}
    if Path(args.model_id).exists():
        raise ConfigError(
            f"a folder named {args.model_id} in the working directory would be taken for the Hub's model; "
            f"pass --model_path {args.model_id} if you mean it, or run elsewhere"
        )
    where = {"cache_dir": str(cache_dir) if cache_dir else None, "revision": args.revision}
    hub: Any = transformers.utils.hub
    # The Hub's cache keeps each file under the commit that it is of; the configuration itself no longer names it.
    commit: str | None = hub.extract_commit_hash(hub.cached_file(args.model_id, "config.json", **where), None)
    if commit is None:
        raise ConfigError(f"training_args: {args.model_id} at {args.revision or 'main'} has no config.json")
    where["revision"] = commit
    return ModelSource(model_id=args.model_id, revision=commit, digest=None), args.model_id, where


def _check_files(source: ModelSource, where: dict[str, str | None], *, has_weights: bool) -> None:
    """Raises: RemoteError when a file that was fetched is not the one that the Hub lists at the commit."""
    if source.revision is not None:
        hub: Any = transformers.utils.hub
        check_snapshot(Path(hub.cached_file(source.model_id, "config.json", **where)).parent, has_weights=has_weights)


def digest_folder(folder: Path) -> str:
    """sha256 in hex over the names and contents of the folder's weights, configuration and tokenizer files."""
    total = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _DIGESTED_SUFFIXES and path.is_file():
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{path.name}:{content}\n".encode())
    return total.hexdigest()


def _translate_load_error(error: Exception, args: TrainingArgs, model_path: Path | None) -> SubnetError:
    """Whose fault a failed load is, read from the chain of causes that transformers keeps, or else breaks off."""
    causes = _chain(error, lambda one: one.__cause__)
    setting = f"--model_path {model_path}" if model_path else f"{args.model_id} at {args.revision or 'main'}"
    # transformers re-exports the Hub client's errors, so that only the hub seam imports that client.
    hub: Any = transformers.utils.hub
    unknown = (
        hub.RepositoryNotFoundError,
        hub.RevisionNotFoundError,
        hub.GatedRepoError,
    )
    if any(isinstance(cause, unknown) for cause in causes):
        return ConfigError(f"training_args: the Hub has no readable model {setting}")
    is_unreachable = (hub.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    # A tokenizer's error names no cause. What the Hub answered meanwhile, as that it has no such file, is none.
    known = _chain(error, lambda one: one.__cause__ or one.__context__)
    for kind in (RemoteError, is_unreachable):
        if found := next((cause for cause in known if isinstance(cause, kind)), None):
            return RemoteError(f"the Hub did not deliver {setting}: {found}")
    if any(isinstance(cause, hub.HfHubHTTPError) or "httpx" in type(cause).__module__ for cause in causes):
        return RemoteError(f"the Hub did not deliver {setting}: {error}")
    if any(isinstance(cause, OSError) and cause.errno is not None for cause in causes):
        return HostError(f"this machine could not read {setting}: {error}")
    return ConfigError(f"{setting} cannot be loaded as a causal language model: {error}")


def _chain(error: BaseException, follow: Callable[[BaseException], BaseException | None]) -> tuple[BaseException, ...]:
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = follow(cause)
    return tuple(found)
