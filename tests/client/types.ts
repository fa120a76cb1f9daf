// What the types of clients/typescript allow and refuse; tests/client/test_types.py compiles this.
import type { Intervention, Report, WithInterventions, WithReports } from "./heed";

const body: WithInterventions & { model: string } = {
  model: "heed-tiny",
  interventions: [
    { method: "zerotuning", gamma: 1.6, layers: [1, -1], heads: { "1": [0, 3] } },
    { method: "emphasis", spans: [{ text: "a", occurrence: "all" }, { start: 2, end: 5 }] },
    { method: "snapkv", keep: 0.5, report: "full" },
    { method: "zerotuning", profile: "sentiment" },
    { method: "spin", lambda: 0.2 },
  ],
};
export const none: WithInterventions = { interventions: null };
export const sent: string = JSON.stringify(body);

// @ts-expect-error gamma is needed where no profile is named
export const needed: Intervention = { method: "zerotuning" };
// @ts-expect-error there is no such method
export const unknown: Intervention = { method: "zerotunning", gamma: 2 };
// @ts-expect-error there is no such field
export const misspelt: Intervention = { method: "zerotuning", gamma: 2, gama: 1 };
// @ts-expect-error layers are "all" or a list
export const some: Intervention = { method: "zerotuning", gamma: 2, layers: "some" };
export const beside: WithInterventions = {
  // @ts-expect-error there is no such field, beside a profile either
  interventions: [{ method: "zerotuning", profile: "sentiment", gama: 1 }],
};

export function moved(answer: WithReports): unknown {
  const report: Report | undefined = answer.interventions?.[0];
  // @ts-expect-error a status has three values
  if (report?.status === "done") return undefined;
  return report?.status === "applied" ? report.moved_mass : report?.reason;
}
