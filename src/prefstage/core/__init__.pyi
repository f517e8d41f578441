# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .checkpoints import (
    CAUSAL_LM as CAUSAL_LM,
    CLASSIFIER as CLASSIFIER,
    Task as Task,
    check_model_config as check_model_config,
    check_numbers as check_numbers,
    load_checkpoint as load_checkpoint,
    load_model_config as load_model_config,
    load_whole as load_whole,
)
from .config import (
    Config as Config,
    as_config as as_config,
    check_config as check_config,
    did_you_mean as did_you_mean,
    load_config as load_config,
    parse_overrides as parse_overrides,
    refuse as refuse,
    write_config as write_config,
)
from .errors import (
    CheckpointError as CheckpointError,
    ConfigError as ConfigError,
    DataError as DataError,
    InputError as InputError,
    MissingDependencyError as MissingDependencyError,
    ModelError as ModelError,
    PrefstageError as PrefstageError,
    RunFolderError as RunFolderError,
    ServiceError as ServiceError,
    TrainingError as TrainingError,
)
from .files import (
    PARTIAL as PARTIAL,
    append_json_line as append_json_line,
    atomic_path as atomic_path,
    digest as digest,
    digest_file as digest_file,
    json_text as json_text,
    read_json_lines as read_json_lines,
    seed_for as seed_for,
    write_json as write_json,
    write_json_lines as write_json_lines,
    write_text as write_text,
)
from .foreign import (
    bounded as bounded,
    check_shape as check_shape,
    parse_json as parse_json,
    parse_yaml as parse_yaml,
    read_bytes as read_bytes,
    read_json as read_json,
    read_yaml as read_yaml,
    whole_number as whole_number,
)
from .ledger import LEDGER as LEDGER, Ledger as Ledger, kept_ledger as kept_ledger
from .progress import Ticker as Ticker, bars as bars, gathered as gathered, progress as progress
from .runs import (
    LOCK as LOCK,
    MANIFEST as MANIFEST,
    Outcome as Outcome,
    fault_in as fault_in,
    installed_versions as installed_versions,
    list_files as list_files,
    locked as locked,
    markdown_table as markdown_table,
    put_in_place as put_in_place,
    read_result as read_result,
    run_date as run_date,
    run_folder as run_folder,
    scratch_folder as scratch_folder,
    shown as shown,
    write_result as write_result,
)
from .weights import (
    START_MARK as START_MARK,
    adapter_config as adapter_config,
    adapters_of as adapters_of,
    check_token_ids as check_token_ids,
    embedding_rows as embedding_rows,
    foreign_files as foreign_files,
    ids_without_token as ids_without_token,
    is_adapter as is_adapter,
    is_path as is_path,
    reason_of as reason_of,
    weights_fingerprint as weights_fingerprint,
    without_alias_warning as without_alias_warning,
)
