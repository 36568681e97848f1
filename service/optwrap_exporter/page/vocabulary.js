/** The words of the exporter's names: made from wire/words.py by `make generated`. */

/** Health of a process or run, worst first. */
export const HEALTHS = {
  conflict: { word: "Conflict", meaning: "Two live attempts report under this run name", tier: "critical", past: false },
  diverged: { word: "Processes disagree", meaning: "Processes of one attempt report different outcomes or norms of the same step", tier: "critical", past: false },
  gave_up: { word: "Guard gave up", meaning: "The optimizer applied non-finite values, and the run was not rolled back", tier: "critical", past: true },
  failed: { word: "Failed", meaning: "The training ended with an exception, or its last three launches or more ended early", tier: "critical", past: true },
  stopped: { word: "Stopped", meaning: "The training stopped itself", tier: "critical", past: true },
  stale: { word: "No reports", meaning: "The process was killed, it hangs, or it cannot reach the exporter", tier: "critical", past: false },
  stalled: { word: "Stalled", meaning: "The process reports, but it takes no steps", tier: "critical", past: false },
  starved: { word: "Starved", meaning: "No step becomes a gradient step, so the parameters do not change", tier: "critical", past: false },
  skipping: { word: "Skipping", meaning: "The gradients of the last steps were non-finite", tier: "warning", past: false },
  starting: { word: "Starting", meaning: "The process reports, but it has not taken a step yet; it may be compiling", tier: "idle", past: false },
  degraded: { word: "Process missing", meaning: "At least one process of the job has never reported", tier: "warning", past: false },
  finished: { word: "Finished", meaning: "The training ended normally", tier: "idle", past: true },
  ok: { word: "Healthy", meaning: "Steps arrive, and their gradients are finite", tier: "good", past: false },
};

/** Outcome of a step, worst first. */
export const OUTCOMES = {
  accepted_not_finite: { word: "applied although non-finite", meaning: "The optimizer applied non-finite values" },
  skipped_not_finite: { word: "skipped, non-finite", meaning: "Skipped because the gradients were non-finite" },
  accumulated_not_finite: { word: "accumulated although non-finite", meaning: "Non-finite gradients were added to the accumulation window; the API says accumulated, and finite is false" },
  skipped_other: { word: "skipped, other reason", meaning: "Skipped by the training's own skip function" },
  skipped_large: { word: "skipped, large norm", meaning: "Skipped because the gradient norm reached its limit" },
  applied: { word: "gradient step", meaning: "The optimizer changed the parameters" },
  accumulated: { word: "accumulated", meaning: "The gradients were added to the accumulation window" },
};

/** Kind of an event. */
export const EVENTS = {
  skipped: { word: "Skipped", meaning: "The gradients of one step were discarded" },
  accepted_not_finite: { word: "Applied although non-finite", meaning: "The optimizer applied non-finite values" },
  streak_started: { word: "Non-finite streak started", meaning: "The first of several steps in a row is non-finite" },
  streak_ended: { word: "Non-finite streak ended", meaning: "The gradients are finite again" },
  rebased: { word: "Guard rebased", meaning: "skip_spikes took the norms that it had skipped as the new level" },
  starved: { word: "Starved", meaning: "No step became a gradient step for long" },
  stalled: { word: "Stalled", meaning: "The process reports, but it takes no steps" },
  stale: { word: "Reports stopped", meaning: "The process no longer reports" },
  started: { word: "Started", meaning: "A process reported for the first time" },
  resumed: { word: "Resumed", meaning: "Training goes on from a saved or an earlier state" },
  finished: { word: "Finished", meaning: "The training ended normally" },
  failed: { word: "Failed", meaning: "The training ended with an exception" },
  stopped: { word: "Stopped", meaning: "The training stopped itself" },
  conflict: { word: "Conflict", meaning: "Two live attempts report under this run name" },
  diverged: { word: "Processes disagree", meaning: "Processes of one attempt report different outcomes or norms of the same step" },
  diagnosed: { word: "Diagnosed", meaning: "The training's autopsy named what made the first non-finite value of a step" },
};

/** Kind of an incident, worst first. */
export const INCIDENTS = {
  conflict: { word: "Conflict", meaning: "Two live attempts report under this run name" },
  diverged: { word: "Processes disagree", meaning: "Processes of one attempt report different outcomes or norms of a step" },
  gave_up: { word: "Guard gave up", meaning: "The optimizer applied non-finite values, and the run was not rolled back" },
  failed: { word: "Failed", meaning: "The training ended with an exception" },
  stopped: { word: "Stopped", meaning: "The training stopped itself" },
  stale: { word: "No reports", meaning: "A process no longer reports" },
  stalled: { word: "Stalled", meaning: "The processes report, but take no steps" },
  starved: { word: "Starved", meaning: "No step becomes a gradient step" },
  skipped: { word: "Bad steps", meaning: "Steps were skipped, or their gradients were non-finite" },
};

/** State of an incident. */
export const INCIDENT_STATES = {
  open: { word: "Open", meaning: "The trouble lasts, or nobody has acknowledged it" },
  closed: { word: "Closed", meaning: "The trouble ended by itself" },
  acknowledged: { word: "Acknowledged", meaning: "A person has seen it; it no longer counts as trouble" },
};

/** State of a process or an attempt. */
export const STATES = {
  starting: { word: "Starting", meaning: "No step was taken yet" },
  running: { word: "Running", meaning: "Steps are taken" },
  finished: { word: "Finished", meaning: "The training ended normally" },
  failed: { word: "Failed", meaning: "The training ended with an exception" },
  stopped: { word: "Stopped", meaning: "The training stopped itself" },
  lost: { word: "Lost", meaning: "Its processes went silent or were replaced without reporting an end" },
};

/** Reason of a skip. */
export const REASONS = {
  not_finite: { word: "non-finite", meaning: "NaN or Inf in the gradients" },
  large: { word: "large norm", meaning: "The gradient norm reached its limit" },
  other: { word: "other reason", meaning: "Skipped by the training's own skip function" },
};

/** Reason why steps or time were lost. */
export const LOST_REASONS = {
  skipped: { word: "skipped", meaning: "Steps whose gradients were discarded" },
  redone: { word: "taken again", meaning: "Steps that were taken again after a rollback or a restart" },
  starved: { word: "accumulated but not applied", meaning: "Steps of a starved run that were accumulated and never became part of a gradient step; its skipped steps count as skipped" },
};

/** Gauge. */
export const GAUGES = {
  not_finite_streak: { word: "Non-finite streak", meaning: "Steps in a row with non-finite gradients, up to the last step" },
  not_finite_streak_peak: { word: "Longest streak", meaning: "The longest non-finite streak so far" },
  guard_not_finite_count: { word: "Guard count", meaning: "Non-finite calls in a row that apply_if_finite counted" },
  guard_not_finite_limit: { word: "Streak limit", meaning: "Non-finite calls in a row that apply_if_finite rejects" },
  mini_step: { word: "Mini-step", meaning: "Mini-steps in the open accumulation window" },
  every_k: { word: "Window", meaning: "Mini-steps that make one gradient step" },
  gradient_norm: { word: "Gradient norm", meaning: "Global L2 norm of the incoming gradients" },
  gradient_norm_limit: { word: "Skip limit", meaning: "Gradient norm at which a step is skipped" },
  steps_since_sync: { word: "Steps since sync", meaning: "Fast steps of lookahead since the last synchronisation" },
  sync_period: { word: "Sync period", meaning: "Fast steps of lookahead between two synchronisations" },
  guard_rebases: { word: "Guard rebases", meaning: "Times that skip_spikes took the norms that it had skipped as the new level" },
  guard_would_skip_steps: { word: "Would have skipped", meaning: "Steps that skip_spikes(shadow=True) took but would skip" },
  update_norm: { word: "Update norm", meaning: "Global L2 norm of the update that was applied" },
};

/** Figure of a run. */
export const FIGURES = {
  steps: { word: "Steps", meaning: "Calls of the optimizer's update, over all attempts" },
  gradient_steps: { word: "Gradient steps", meaning: "Steps in which the inner optimizer ran" },
  not_finite_steps: { word: "Non-finite steps", meaning: "Steps whose incoming gradients had a NaN or Inf" },
  skipped: { word: "Skipped", meaning: "Steps whose gradients were discarded" },
  accepted_not_finite: { word: "Applied although non-finite", meaning: "Steps in which the optimizer applied a NaN or Inf" },
  skipped_recently: { word: "Skipped lately", meaning: "Skipped steps of the last 1,000" },
  unseen: { word: "Unseen", meaning: "Steps of the optimizer's state that no stored report covers" },
  steps_per_second: { word: "Steps per second", meaning: "Rate of the last steps; a run that takes no steps has none" },
  last_step: { word: "Step", meaning: "Number of the last step, by the optimizer's own count" },
  last_step_time: { word: "Last step", meaning: "When the last step was reported" },
  first_report: { word: "First report", meaning: "When the run reported for the first time" },
  last_report: { word: "Last report", meaning: "When the run reported last" },
  last_clean_step: { word: "Last clean step", meaning: "Roll back to this step or an earlier one" },
  norm: { word: "Gradient norm", meaning: "Global L2 norm of the gradients of one step" },
  scalars: { word: "Scalars", meaning: "The loss and other numbers that the training reports" },
  lost_steps: { word: "Steps lost", meaning: "Steps lost to skips, to steps taken again after a rollback, and to starvation" },
  lost_seconds: { word: "Time lost", meaning: "Time lost to skips, to steps taken again after a rollback, and to starvation" },
  attempts_total: { word: "Attempts", meaning: "Launches of the job" },
  process_count: { word: "Processes", meaning: "Processes of the job, as the job reports it" },
  processes: { word: "Processes reporting", meaning: "Processes that report to this exporter" },
  missing: { word: "Processes missing", meaning: "Processes of the job that have not reported" },
};

/** Condition of the exporter's store. */
export const STORE_CONDITIONS = {
  ok: { word: "healthy", meaning: "Reports are stored" },
  full: { word: "full", meaning: "No room on the disk, or within --retention-bytes" },
  read_only: { word: "read-only", meaning: "The database or its file system cannot be written" },
  corrupt: { word: "damaged", meaning: "The database is damaged, or was cut off" },
  io_error: { word: "failing", meaning: "Reading or writing failed" },
  gone: { word: "gone", meaning: "The database was deleted, renamed or replaced" },
};
