# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .base import (
    GroupBatch as GroupBatch,
    Loss as Loss,
    LossBatch as LossBatch,
    LossState as LossState,
    LossValues as LossValues,
    PairBatch as PairBatch,
    ResponseBatch as ResponseBatch,
    Responses as Responses,
    Totals as Totals,
    UnpairedBatch as UnpairedBatch,
)
from .batchwise import (
    AOT as AOT,
    BCO as BCO,
    REPO as REPO,
    BetaDPO as BetaDPO,
    InfoNCA as InfoNCA,
    RewardEXO as RewardEXO,
    UnpairedAOT as UnpairedAOT,
)
from .mixing import (
    LOSSES as LOSSES,
    LossMix as LossMix,
    LossSpec as LossSpec,
    LossTerm as LossTerm,
    get_loss as get_loss,
    parse_loss as parse_loss,
)
from .pairwise import (
    DPO as DPO,
    DPOP as DPOP,
    EXO as EXO,
    IPO as IPO,
    NCA as NCA,
    ODPO as ODPO,
    SPPO as SPPO,
    APODown as APODown,
    APOZero as APOZero,
    CalDPO as CalDPO,
    ChiPO as ChiPO,
    DiscoPOP as DiscoPOP,
    GammaDPO as GammaDPO,
    HardSPPO as HardSPPO,
    Hinge as Hinge,
    NormDPO as NormDPO,
    RobustDPO as RobustDPO,
)
from .reference_free import (
    CPO as CPO,
    ORPO as ORPO,
    TPO as TPO,
    TPOL as TPOL,
    AlphaPO as AlphaPO,
    SimPO as SimPO,
    SLiC as SLiC,
)
from .tokens import (
    LDDPO as LDDPO,
    RDPO as RDPO,
    SGDPO as SGDPO,
    WPO as WPO,
    SamPO as SamPO,
)
from .unpaired import (
    KTO as KTO,
    PIPAM as PIPAM,
    PIPAN as PIPAN,
    SFT as SFT,
    MatchedBCO as MatchedBCO,
    UnpairedAPOZero as UnpairedAPOZero,
    UnpairedBCO as UnpairedBCO,
)
