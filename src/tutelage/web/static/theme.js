// Applies the theme that was chosen in this browser, before the page is painted. The default is the system theme.
const chosen = localStorage.getItem("theme");
if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
