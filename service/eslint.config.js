/** The rules for the page's JavaScript. `make check` runs them; tsconfig.json has those of the type checker. */

import js from "@eslint/js";
import globals from "globals";

const MARKUP = "The page never parses markup: build elements with el() from dom.js.";

export default [
  { ignores: ["**/vendor/**", "**/node_modules/**", "**/.venv*/**"] },
  js.configs.recommended,
  { files: ["eslint.config.js"], languageOptions: { globals: globals.node } },
  {
    files: ["optwrap_exporter/page/**/*.js"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module", globals: globals.browser },
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      complexity: ["error", 15],
      "default-case-last": "error",
      eqeqeq: "error",
      "max-depth": ["error", 4],
      "max-len": ["error", { code: 150, ignoreStrings: true, ignoreTemplateLiterals: true, ignoreRegExpLiterals: true }],
      "max-lines": ["error", 320],
      "max-params": ["error", 6],
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-restricted-properties": [
        "error",
        ...["innerHTML", "outerHTML", "insertAdjacentHTML", "write"].map((property) => ({ property, message: MARKUP })),
      ],
      "no-return-assign": "error",
      "no-shadow": "error",
      "no-template-curly-in-string": "error",
      "no-unused-vars": ["error", { argsIgnorePattern: "^_", varsIgnorePattern: "^_", destructuredArrayIgnorePattern: "^_" }],
      "no-use-before-define": ["error", { functions: false, variables: false }],
      "no-useless-concat": "error",
      "no-var": "error",
      "object-shorthand": "error",
      "prefer-const": "error",
      "prefer-template": "error",
      "require-atomic-updates": "error",
      "require-await": "error",
    },
  },
];
