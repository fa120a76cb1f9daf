// Made by `make client` from the schemas of a server's catalogue.

/** A text of the prompt, found by exact code points. */
export interface TextSpan {
  /** Text to look for in the prompt. 1 to 65536 characters. */
  text: string;
  /**
   * Which occurrence, 1-based, or "all". The spans together look at no more than 1,024 occurrences.
   * 1 where it is left out.
   */
  occurrence?: "all" | number;
}

/** Token positions of the prompt. */
export interface PositionSpan {
  /** First token position. At least 0. */
  start: number;
  /** Past the last token position. At least 0. */
  end: number;
}

/** The keys that hold an image of the prompt. */
export interface PictureSpan {
  /** Which image of the prompt, 1-based, or "all". */
  image: "all" | number;
}

/** What every method takes. */
export interface Shared {
  /**
   * Name of a profile whose parameters hold where none are written beside it. At most 64
   * characters.
   */
  profile?: string | null;
  /** "full" adds the long parts of the report. "summary" where it is left out. */
  report?: "summary" | "full";
}

/**
 * Find attention sinks in the prompt and give most of their weight to the other keys. The smaller
 * beta, the less the sinks keep; what they give goes to the other keys in proportion.
 */
export interface ACT extends Shared {
  method: "act";
  /** Share of its weight a sink keeps. At least 0, at most 1. 0.4 where it is left out. */
  beta?: number;
  /** A key is a sink when its mean weight is above this. Above 0, at most 1. */
  tau?: number | null;
  /**
   * In place of tau: the threshold is this over the number of rows counted; 5 where neither is
   * given. Above 0, at most 100.
   */
  alpha_over_n?: number | null;
  /**
   * "full": sinks from all prompt rows, whose prefill is one step; "causal": from the rows before,
   * renewed at rows 32, 64, 128, ... "full" where it is left out.
   */
  stats?: "full" | "causal";
  /**
   * Generated rows: with the prompt's sinks, with sinks renewed at each row, or not. "frozen" where
   * it is left out.
   */
  decode?: "frozen" | "running" | "off";
  /** Which key above the threshold is no sink. "first_flagged" where it is left out. */
  protect?: "first_flagged" | "position_0";
  /** Most sinks per head: the largest means. At least 1, at most 64. 64 where it is left out. */
  max_sinks?: number;
  /** Rows that must see a key for it to be a sink. At least 1. 1 where it is left out. */
  min_rows?: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. Layers 2 to L - 2 where it
   * is left out.
   */
  layers?: "all" | number[];
  /**
   * "all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the
   * place of `layers`. "all" where it is left out.
   */
  heads?: "all" | number[] | Record<string, number[]>;
}

/**
 * Scale the attention that every row pays to the initial token. gamma > 1 draws attention to the
 * initial token, gamma < 1 leaves more to the rest.
 */
export interface ZeroTuning extends Shared {
  method: "zerotuning";
  /** Factor on the weight of the initial token. Above 0, at most 10. */
  gamma: number;
  /** Position of the initial token. At least 0, below 8. 0 where it is left out. */
  position?: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. "all" where it is left
   * out.
   */
  layers?: "all" | number[];
  /**
   * "all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the
   * place of `layers`. "all" where it is left out.
   */
  heads?: "all" | number[] | Record<string, number[]>;
}

/**
 * Let every row see only some initial tokens and a window of recent ones. Bounds what a row reads;
 * what lies between sinks and window is out of reach for good.
 */
export interface StreamingLLM extends Shared {
  method: "streaming_llm";
  /** Initial tokens that stay visible. At least 0, at most 64. 4 where it is left out. */
  sinks?: number;
  /** Recent tokens, the row's own included. At least 16. 1020 where it is left out. */
  window?: number;
  /**
   * "rolling" counts positions over the visible keys, as the paper does. "rolling" where it is left
   * out.
   */
  positions?: "rolling" | "original";
}

/**
 * Turn attention to chosen spans of the prompt by weakening the rest of it. The smaller alpha, the
 * more a row looks at the spans and at what was generated.
 */
export interface Emphasis extends Shared {
  method: "emphasis";
  /** Parts of the prompt. 1 to 64 items. */
  spans: (TextSpan | PositionSpan | PictureSpan)[];
  /**
   * Factor on the weight of prompt keys outside the spans. Above 0, at most 1. 0.01 where it is
   * left out.
   */
  alpha?: number;
  /** Prompt positions that keep weight 1. At most 64 items. [0] where it is left out. */
  protect_positions?: number[];
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. "all" where it is left
   * out.
   */
  layers?: "all" | number[];
  /**
   * "all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the
   * place of `layers`. "all" where it is left out.
   */
  heads?: "all" | number[] | Record<string, number[]>;
  /** Which query rows are edited, by absolute position. "all" where it is left out. */
  rows?: "all" | "prompt" | "generated" | "last_and_generated" | "after_image";
}

/**
 * Strengthen the attention of each generated token to those just before it. beta > 0 keeps the
 * answer coherent with its own last tokens; large values make it repeat.
 */
export interface LocoRE extends Shared {
  method: "locore";
  /** Added weight of the last tokens. At least 0, at most 1. 0.15 where it is left out. */
  beta?: number;
  /** How many tokens back. At least 1, at most 256. 16 where it is left out. */
  window?: number;
  /** Count the prompt's keys after the last image as well. false where it is left out. */
  include_prompt_tail?: boolean;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. "all" where it is left
   * out.
   */
  layers?: "all" | number[];
}

/**
 * Multiply the output of chosen heads; a gain below 1 is privileged. gain > 1 reinforces heads;
 * below 1 it weakens, removes (0) or inverts them.
 */
export interface HeadGain extends Shared {
  method: "head_gain";
  /** Factor on the output; below 1 is privileged. At least -2, at most 4. */
  gain: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. "all" where it is left
   * out.
   */
  layers?: "all" | number[];
  /**
   * "all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the
   * place of `layers`. "all" where it is left out.
   */
  heads?: "all" | number[] | Record<string, number[]>;
  /** Which query rows are edited, by absolute position. "all" where it is left out. */
  rows?: "all" | "prompt" | "generated" | "last_and_generated" | "after_image";
}

/**
 * Multiply the attention logits of chosen heads; a scale below 1 is privileged. q_scale > 1
 * sharpens a head's attention; below 1 it flattens it, down to uniform at 0.
 */
export interface AttentionScale extends Shared {
  method: "attention_scale";
  /** Factor on the logits; below 1 is privileged. At least 0, at most 10. */
  q_scale: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. "all" where it is left
   * out.
   */
  layers?: "all" | number[];
  /**
   * "all", query-head ids used in every selected layer, or {"layer": [heads]}, which takes the
   * place of `layers`. "all" where it is left out.
   */
  heads?: "all" | number[] | Record<string, number[]>;
}

/**
 * Keep the keys that the last rows of the prompt attend to; evict the rest. The window is the
 * question in most prompts: what it does not look at is dropped for good.
 */
export interface SnapKV extends Shared {
  method: "snapkv";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 0 where it is left out.
   */
  sinks?: number;
  /** Last tokens that are always kept; null: the method's own. At least 0. */
  recent?: number | null;
  /**
   * Last prompt rows that are observed; their keys are kept. At least 1, at most 256. 32 where it
   * is left out.
   */
  window?: number;
  /**
   * Keys over which scores are pooled; odd; 1: no pooling. At least 1, at most 63. 5 where it is
   * left out.
   */
  kernel?: number;
  /** How scores are pooled. "avg" where it is left out. */
  pooling?: "avg" | "max";
}

/**
 * Keep the keys with the most attention over all rows, and the recent ones. Half of the budget goes
 * to the most recent tokens, unless `recent` says otherwise.
 */
export interface H2O extends Shared {
  method: "h2o";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 0 where it is left out.
   */
  sinks?: number;
  /** Last tokens that are always kept; null: the method's own. At least 0. */
  recent?: number | null;
  /** Go on evicting while the answer is generated. true where it is left out. */
  decode?: boolean;
}

/**
 * Keep the keys that the last row attends to, the same for all heads of a layer. One row decides;
 * all heads of a layer keep the same keys.
 */
export interface TOVA extends Shared {
  method: "tova";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 0 where it is left out.
   */
  sinks?: number;
  /** Last tokens that are always kept; null: the method's own. At least 0. */
  recent?: number | null;
  /** Go on evicting while the answer is generated. true where it is left out. */
  decode?: boolean;
}

/**
 * SnapKV with more of the budget for early layers and less for late ones. The larger beta, the
 * steeper the pyramid; 1 is SnapKV.
 */
export interface PyramidKV extends Shared {
  method: "pyramidkv";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 0 where it is left out.
   */
  sinks?: number;
  /** Last tokens that are always kept; null: the method's own. At least 0. */
  recent?: number | null;
  /**
   * Last prompt rows that are observed; their keys are kept. At least 1, at most 256. 32 where it
   * is left out.
   */
  window?: number;
  /**
   * Keys over which scores are pooled; odd; 1: no pooling. At least 1, at most 63. 5 where it is
   * left out.
   */
  kernel?: number;
  /** How scores are pooled. "avg" where it is left out. */
  pooling?: "avg" | "max";
  /**
   * The last layer gets about 1 / beta of the mean. At least 1, at most 100. 20 where it is left
   * out.
   */
  beta?: number;
}

/**
 * SnapKV's scores; the heads of a layer share its budget by where the highest lie. Heads with a
 * flat attention keep more keys, heads that look at a few keep fewer.
 */
export interface AdaKV extends Shared {
  method: "adakv";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 0 where it is left out.
   */
  sinks?: number;
  /** Last tokens that are always kept; null: the method's own. At least 0. */
  recent?: number | null;
  /**
   * Last prompt rows that are observed; their keys are kept. At least 1, at most 256. 32 where it
   * is left out.
   */
  window?: number;
  /**
   * Keys over which scores are pooled; odd; 1: no pooling. At least 1, at most 63. 7 where it is
   * left out.
   */
  kernel?: number;
  /** How scores are pooled. "max" where it is left out. */
  pooling?: "avg" | "max";
  /**
   * Share of the budget that every head is sure of. At least 0, at most 1. 0.5 where it is left
   * out.
   */
  floor?: number;
}

/**
 * Keep the keys that are least similar to the mean key. Looks at no query: the same keys are kept
 * whatever is asked about the text.
 */
export interface KeyDiff extends Shared {
  method: "keydiff";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 0 where it is left out.
   */
  sinks?: number;
  /** Last tokens that are always kept; null: the method's own. At least 0. */
  recent?: number | null;
}

/** Keep the keys with the smallest norm. Looks at no query and costs next to nothing. */
export interface Knorm extends Shared {
  method: "knorm";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 0 where it is left out.
   */
  sinks?: number;
  /** Last tokens that are always kept; null: the method's own. At least 0. */
  recent?: number | null;
}

/**
 * Keep the keys that later queries are expected to attend to, by their distribution. Does not
 * depend on the last rows: fit for a text that is questioned later.
 */
export interface ExpectedAttention extends Shared {
  method: "expected_attention";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 4 where it is left out.
   */
  sinks?: number;
  /** Last tokens that are always kept; null: the method's own. At least 0. */
  recent?: number | null;
  /**
   * Positions over which the rotation is averaged. At least 1, at most 8192. 512 where it is left
   * out.
   */
  n_future_positions?: number;
  /**
   * Whether the covariance of the queries counts, or their mean only. true where it is left out.
   */
  use_covariance?: boolean;
  /**
   * Added to the expected weight of every key. At least 0, at most 1. 0.02 where it is left out.
   */
  epsilon?: number;
}

/**
 * Heads far from the layer's semantic centre keep all keys, the others a few. Far heads look at
 * what is particular to a task, so they are spared.
 */
export interface TaskKV extends Shared {
  method: "task_kv";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 16 where it is left out.
   */
  sinks?: number;
  /**
   * Last tokens that are always kept; null: the method's own. At least 0. 256 where it is left out.
   */
  recent?: number | null;
  /**
   * Last prompt rows that are observed; their keys are kept. At least 1, at most 256. 32 where it
   * is left out.
   */
  window?: number;
  /**
   * Keys over which scores are pooled; odd; 1: no pooling. At least 1, at most 63. 7 where it is
   * left out.
   */
  kernel?: number;
  /** How scores are pooled. "avg" where it is left out. */
  pooling?: "avg" | "max";
  /** Share of far heads in layer 0. At least 0, at most 1. 0.25 where it is left out. */
  beta?: number;
  /** Far heads in the last layer. At least 0, at most 1024. 1 where it is left out. */
  m?: number;
  /**
   * Most attended keys in a head's semantic vector. At least 1, at most 4096. 256 where it is left
   * out.
   */
  t?: number;
}

/**
 * Layers whose queries resemble each other less get more of the budget. Keys are scored by mean and
 * variance over the window, layers by how alike its queries are.
 */
export interface TAPPA extends Shared {
  method: "tappa";
  /** Keys kept per layer and KV head, protected ones included. At least 1. */
  budget?: number | null;
  /** Share of the prompt kept, in place of `budget`. Above 0, at most 1. */
  keep?: number | null;
  /**
   * Initial prompt tokens that are always kept. At least 0, at most 256. 0 where it is left out.
   */
  sinks?: number;
  /** Last tokens that are always kept; null: the method's own. At least 0. */
  recent?: number | null;
  /**
   * Last prompt rows that are observed; their keys stay. At least 2, at most 256. 32 where it is
   * left out.
   */
  window?: number;
  /**
   * Keys over which scores are pooled; odd; 1: no pooling. At least 1, at most 63. 5 where it is
   * left out.
   */
  kernel?: number;
  /** How scores are pooled. "avg" where it is left out. */
  pooling?: "avg" | "max";
  /**
   * Factor on the variance of a key's weights. At least 0, at most 10000.0. 200 where it is left
   * out.
   */
  gamma_c?: number;
  /** Factor on 1 - q; null: nothing else counts. At least 0, at most 1000000.0. */
  alpha?: number | null;
  /** Root of the entropy. At least 0.1, at most 10. 1.6 where it is left out. */
  tau1?: number;
  /** Root of the variance. At least 0.1, at most 10. 0.4 where it is left out. */
  tau2?: number;
}

/**
 * Raise the attention of the answer to the image. The larger alpha, the more the answer looks at
 * the image; near 0.7 it begins to degenerate.
 */
export interface PAI extends Shared {
  method: "pai";
  /**
   * Share of its magnitude by which a logit grows. At least 0, at most 0.7. 0.5 where it is left
   * out.
   */
  alpha?: number;
  /**
   * Weight of contrastive decoding, which is not offered: only 1 is served. At least 1, at most 2.
   * 1.0 where it is left out.
   */
  gamma?: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. Layers 2 to L - 1 where it
   * is left out.
   */
  layers?: "all" | number[];
}

/**
 * Raise the attention of the answer to the patches that the image encoder attends to. The larger
 * alpha and beta, the more the answer looks at these patches; above 0.7 it degenerates.
 */
export interface PAINT extends Shared {
  method: "paint";
  /**
   * Share by which logits of local patches grow. At least 0, at most 0.75. 0.7 where it is left
   * out.
   */
  alpha?: number;
  /** The same for the patches of the summary. At least 0, at most 0.5. 0.3 where it is left out. */
  beta?: number;
  /**
   * Share of an image's patches that are local. At least 0, at most 0.3. 0.25 where it is left out.
   */
  local_ratio?: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. Layers 2 to L - 1 where it
   * is left out.
   */
  layers?: "all" | number[];
}

/**
 * Scale the logits of the image, and of what stands before it; the latter is privileged. enh_para >
 * 1 sharpens the attention to the image; sup_para < 1 takes it from the system prompt.
 */
export interface VAF extends Shared {
  method: "vaf";
  /** Factor on the image's logits. At least 1, at most 2. 1.15 where it is left out. */
  enh_para?: number;
  /**
   * Factor on the logits before the first image; below 1 is privileged. At least 0, at most 1. 1.0
   * where it is left out.
   */
  sup_para?: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. Layers 9 to 14 where it is
   * left out.
   */
  layers?: "all" | number[];
}

/**
 * Scale up the image's logits, and scale down the system prompt's (privileged). alpha_img > 0
 * sharpens the attention to the image; alpha_sys > 0 takes it from the system prompt.
 */
export interface AVARModulation extends Shared {
  method: "avar";
  /**
   * By how much the image's logits are scaled up. At least 0, at most 0.5. 0.15 where it is left
   * out.
   */
  alpha_img?: number;
  /**
   * By how much logits before the first image are scaled down; above 0 is privileged. At least 0,
   * at most 0.9. 0.0 where it is left out.
   */
  alpha_sys?: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. "all" where it is left
   * out.
   */
  layers?: "all" | number[];
  /** Which query rows are edited, by absolute position. "after_image" where it is left out. */
  rows?: "all" | "prompt" | "generated" | "last_and_generated" | "after_image";
}

/**
 * Sharpen or spread the attention to the image in the row that gives the first token. w > 1 where
 * the model looks at the right place already; w < 1 where it should look elsewhere.
 */
export interface AdaptVis extends Shared {
  method: "adaptvis";
  /** Factor on the image's logits. At least 0.25, at most 4. */
  w: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. "all" where it is left
   * out.
   */
  layers?: "all" | number[];
}

/**
 * Move attention from sinks to the parts of the image that are none. The larger move_fraction, the
 * less the sinks keep; the gate leaves heads alone that look elsewhere.
 */
export interface VAR extends Shared {
  method: "var";
  /** Share of its weight that a sink gives. At least 0, at most 1. 0.6 where it is left out. */
  move_fraction?: number;
  /**
   * Least share that the image's other keys have in what a head gives to the image. At least 0, at
   * most 1. 0.5 where it is left out.
   */
  rho?: number;
  /**
   * Least weight that a head gives to the image. At least 0, at most 1. 0.2 where it is left out.
   */
  min_visual_mass?: number;
  /** A token is a sink above this phi. Above 0, at most 200. 20.0 where it is left out. */
  tau?: number;
  /** Sinks outside of the image give as well. true where it is left out. */
  include_text_sinks?: boolean;
  /**
   * Dimensions of the hidden state in which sinks stand out; the model's own where they are known.
   * 1 to 64 items.
   */
  sink_dims?: number[] | null;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. Layers 2 to L - 2 where it
   * is left out.
   */
  layers?: "all" | number[];
  /** Edit the prompt's rows after the image. true where it is left out. */
  prefill?: boolean;
  /** Edit generated rows. true where it is left out. */
  decode?: boolean;
}

/**
 * Reinforce the heads whose output depends on the image most, chosen once per answer. The larger
 * alpha, the more the chosen heads weigh; above 3 answers degenerate in the paper.
 */
export interface VHR extends Shared {
  method: "vhr";
  /** Factor on the chosen heads. Above 0, at most 3.5. 2.0 where it is left out. */
  alpha?: number;
  /** Share of a layer's heads that are chosen. Above 0, below 1. 0.5 where it is left out. */
  select_fraction?: number;
  /** Leave heads out that are outliers with and without the image. true where it is left out. */
  filter?: boolean;
  /**
   * What a head gives without the image: "companion" runs the prompt without it first; "masked"
   * leaves the image's keys out of the softmax, which is cheaper and differs. "companion" where it
   * is left out.
   */
  mode?: "companion" | "masked";
  /**
   * Which rows are reinforced: "all" are those of the prompt too, whose prefill is one step.
   * "last_and_generated" where it is left out.
   */
  rows?: "last_and_generated" | "all";
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. Layer 1 and the last 14
   * where it is left out.
   */
  layers?: "all" | number[];
}

/**
 * Weaken, in each row of the answer, the heads that attend least to the image. The smaller ratio
 * and lambda, the more heads are weakened, and the further.
 */
export interface SPIN extends Shared {
  method: "spin";
  /**
   * Share of a layer's heads that stay, at least one. Above 0, at most 1. 0.8 where it is left out.
   */
  ratio?: number;
  /** Factor on the other heads' outputs. At least 0, at most 1. 0.1 where it is left out. */
  lambda?: number;
  /**
   * "all" or layer ids, 0-based; negative ids count from the last layer. "all" where it is left
   * out.
   */
  layers?: "all" | number[];
}

/**
 * Raise the attention to the parts of the image that the question turned to. The larger alpha, the
 * more the answer looks at what the question turned to.
 */
export interface GIFT extends Shared {
  method: "gift";
  /** How far salient keys are raised. At least 0, at most 8. 5.0 where it is left out. */
  alpha?: number;
  /**
   * How far the question's keys follow the image's. At least 0, at most 2. 1.0 where it is left
   * out.
   */
  beta?: number;
  /** Layer in which the saliency is found; below all of `layers`. At least -10000, below 10000. */
  saliency_layer: number;
  /** "all" or layer ids, 0-based; negative ids count from the last layer. */
  layers: "all" | number[];
  /**
   * Share of a layer's heads that are the top ones. Above 0, at most 1. 0.5 where it is left out.
   */
  head_fraction?: number;
  /** Rows of the question that count: its words of content. "all" where it is left out. */
  content_rows?: "all" | (TextSpan | PositionSpan | PictureSpan)[];
}

/** One intervention: a method with its parameters. */
export type Intervention =
  | ACT
  | ZeroTuning
  | StreamingLLM
  | Emphasis
  | LocoRE
  | HeadGain
  | AttentionScale
  | SnapKV
  | H2O
  | TOVA
  | PyramidKV
  | AdaKV
  | KeyDiff
  | Knorm
  | ExpectedAttention
  | TaskKV
  | TAPPA
  | PAI
  | PAINT
  | VAF
  | AVARModulation
  | AdaptVis
  | VAR
  | VHR
  | SPIN
  | GIFT;

/** An intervention whose parameters come from one of the server's profiles; those written win. */
export type FromProfile<Method extends Intervention = Intervention> = Method extends Intervention
  ? Partial<Method> & Pick<Method, "method"> & { profile: string }
  : never;

/** Beside the other fields of a request's body. */
export interface WithInterventions {
  interventions?: (Intervention | FromProfile)[] | null;
}

/** What became of one intervention. What its method measured stands beside these fields. */
export interface Report {
  method: string;
  status: "applied" | "neutral" | "skipped";
  source: "request" | "default";
  layer_count?: number;
  head_count?: number;
  cache?: "shared" | "salted" | "private";
  prompt_rows?: number;
  cached_rows?: number;
  generated_rows?: number;
  reason?: string;
  profile?: string;
  [measured: string]: unknown;
}

/** Beside the other fields of an answer's body. */
export interface WithReports {
  interventions?: Report[];
}
